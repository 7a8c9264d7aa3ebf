#include "objectio.h"

#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <rados/librados.hpp>

namespace {

// What one sparse read of several brings.
struct part {
	std::map<uint64_t, uint64_t> extents;
	librados::bufferlist data;
	int ret = 0;
};

} // namespace

struct cm_object_op {
	librados::IoCtx io; // must outlive the completion
	librados::AioCompletion *done = nullptr;
	uintptr_t token = 0;

	// Answers are written here: what is under way must not be moved or freed.
	librados::snap_set_t set;
	int set_ret = 0;
	std::deque<part> parts;

	std::vector<uint64_t> words;
	bool told = false;

	cm_object_op() = default;
	cm_object_op(const cm_object_op &) = delete;
	cm_object_op &operator=(const cm_object_op &) = delete;

	~cm_object_op() {
		if (done)
			done->release();
	}
};

namespace {

void finished(rados_completion_t, void *arg) {
	cmObjectOpDone(static_cast<cm_object_op *>(arg)->token);
}

// Nothing but a return value may leave for C.
template <typename F> int guarded(F f) {
	try {
		return f();
	} catch (const std::bad_alloc &) {
		return -ENOMEM;
	} catch (...) {
		return -EIO;
	}
}

std::unique_ptr<cm_object_op> make(uintptr_t token) {
	auto op = std::make_unique<cm_object_op>();
	op->token = token;
	op->done = librados::Rados::aio_create_completion();
	op->done->set_complete_callback(op.get(), finished);
	return op;
}

// The snapshot to read is a property of the context, and that is its owner's.
void open_at(cm_object_op &op, rados_ioctx_t io, uint64_t snap) {
	librados::IoCtx given;
	librados::IoCtx::from_rados_ioctx_t(io, given);
	op.io.dup(given);
	op.io.snap_set_read(snap);
}

// Mirroring passes over data once: it should not drive out what others read.
constexpr int once = LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL | LIBRADOS_OP_FLAG_FADVISE_NOCACHE;

// What is to be done to an object, from its words.
int build(librados::ObjectWriteOperation &todo, const uint64_t *steps, size_t n, const cm_object_op *data) {
	for (size_t i = 0; i < n; i++) {
		const uint64_t *s = steps + 5 * i;
		switch (s[0]) {
		case CM_STEP_CREATE:
			todo.create(false);
			break;
		case CM_STEP_CREATE_EXCLUSIVE:
			todo.create(true);
			break;
		case CM_STEP_ASSERT_EXISTS:
			todo.assert_exists();
			break;
		case CM_STEP_REMOVE:
			todo.remove();
			break;
		case CM_STEP_WRITE: {
			if (!data || s[3] >= data->parts.size())
				return -EINVAL;
			const librados::bufferlist &from = data->parts[s[3]].data;
			if (s[4] > from.length() || s[2] > from.length() - s[4])
				return -EINVAL;
			librados::bufferlist piece;
			piece.substr_of(from, s[4], s[2]);
			todo.write(s[1], piece);
			todo.set_op_flags2(once);
			break;
		}
		case CM_STEP_ZERO:
			todo.zero(s[1], s[2]);
			break;
		case CM_STEP_TRUNCATE:
			todo.truncate(s[1]);
			break;
		case CM_STEP_HINT:
			todo.set_alloc_hint(s[2], s[2]);
			break;
		default:
			return -EINVAL;
		}
	}
	return 0;
}

// Of an object and its snapshots. A full cluster shall say so, instead of keeping
// us waiting.
int send(librados::IoCtx &io, const std::string &name, librados::AioCompletion *done, librados::ObjectWriteOperation &todo,
	std::vector<librados::snap_t> &context) {
	librados::snap_t newest = context.empty() ? 0 : context.front();
	return io.aio_operate(name, done, &todo, newest, context, LIBRADOS_OPERATION_FULL_TRY, nullptr);
}

} // namespace

int cm_object_list(rados_ioctx_t io, const char *name, size_t name_len, uintptr_t token, cm_object_op **out) {
	return guarded([&] {
		auto op = make(token);
		open_at(*op, io, LIBRADOS_SNAP_DIR);
		librados::ObjectReadOperation ask;
		ask.list_snaps(&op->set, &op->set_ret);
		int r = op->io.aio_operate(std::string(name, name_len), op->done, &ask, nullptr);
		if (r < 0)
			return r;
		*out = op.release();
		return 0;
	});
}

int cm_object_read(rados_ioctx_t io, const char *name, size_t name_len, uint64_t snap, const uint64_t *extents,
	size_t n, uintptr_t token, cm_object_op **out) {
	return guarded([&] {
		auto op = make(token);
		open_at(*op, io, snap);
		librados::ObjectReadOperation ask;
		for (size_t i = 0; i < n; i++) {
			part &p = op->parts.emplace_back();
			ask.sparse_read(extents[2 * i], extents[2 * i + 1], &p.extents, &p.data, &p.ret);
			ask.set_op_flags2(once);
		}
		int r = op->io.aio_operate(std::string(name, name_len), op->done, &ask, nullptr);
		if (r < 0)
			return r;
		*out = op.release();
		return 0;
	});
}

int cm_object_write(rados_ioctx_t io, const char *name, size_t name_len, const uint64_t *snaps, size_t snap_count,
	const uint64_t *steps, size_t n, const cm_object_op *data, uintptr_t token, cm_object_op **out) {
	return guarded([&] {
		auto op = make(token);
		librados::IoCtx::from_rados_ioctx_t(io, op->io);
		librados::ObjectWriteOperation todo;
		int r = build(todo, steps, n, data);
		if (r < 0)
			return r;
		std::vector<librados::snap_t> context(snaps, snaps + snap_count);
		r = send(op->io, std::string(name, name_len), op->done, todo, context);
		if (r < 0)
			return r;
		*out = op.release();
		return 0;
	});
}

cm_object_op *cm_object_data(const void *bytes, size_t n) {
	cm_object_op *out = nullptr;
	guarded([&] {
		auto op = std::make_unique<cm_object_op>();
		op->parts.emplace_back().data.append(static_cast<const char *>(bytes), n);
		out = op.release();
		return 0;
	});
	return out;
}

int cm_object_result(const cm_object_op *op) {
	int r = op->done ? op->done->get_return_value() : 0;
	if (r < 0)
		return r;
	if (op->set_ret < 0)
		return op->set_ret;
	for (const part &p : op->parts)
		if (p.ret < 0)
			return p.ret;
	return 0;
}

int cm_object_answer(cm_object_op *op, const uint64_t **words, size_t *count) {
	return guarded([&] {
		auto &out = op->words;
		if (!op->told && op->parts.empty()) {
			out.push_back(op->set.seq);
			out.push_back(op->set.clones.size());
			for (const auto &c : op->set.clones) {
				out.push_back(c.cloneid);
				out.push_back(c.size);
				out.push_back(c.snaps.size());
				out.insert(out.end(), c.snaps.begin(), c.snaps.end());
				out.push_back(c.overlap.size());
				for (const auto &o : c.overlap) {
					out.push_back(o.first);
					out.push_back(o.second);
				}
			}
		} else if (!op->told) {
			for (const part &p : op->parts) {
				out.push_back(p.extents.size());
				for (const auto &e : p.extents) {
					out.push_back(e.first);
					out.push_back(e.second);
				}
			}
		}
		op->told = true;
		*words = out.data();
		*count = out.size();
		return 0;
	});
}

int cm_object_part(cm_object_op *op, size_t part, const void **bytes, size_t *n) {
	return guarded([&] {
		if (part >= op->parts.size())
			return -EINVAL;
		librados::bufferlist &data = op->parts[part].data;
		*n = data.length();
		*bytes = data.length() ? data.c_str() : nullptr;
		return 0;
	});
}

void cm_object_cancel(cm_object_op *op) {
	guarded([&] { return op->io.aio_cancel(op->done); });
}

void cm_object_free(cm_object_op *op) { delete op; }

struct cm_object_turns {
	struct turn {
		std::string name;
		librados::ObjectWriteOperation todo;
	};
	librados::IoCtx io;
	std::vector<librados::snap_t> context;
	std::deque<turn> list;
	uintptr_t token = 0;
	std::atomic<bool> stopped{false};
	// These belong to whoever sends: the caller, then one callback after the other.
	size_t done = 0;
	int ret = 0;

	int next();
	static void answered(rados_completion_t c, void *arg);
};

int cm_object_turns::next() {
	return guarded([&] {
		librados::AioCompletion *c = librados::Rados::aio_create_completion();
		c->set_complete_callback(this, answered);
		int r = send(io, list[done].name, c, list[done].todo, context);
		c->release(); // librados has its own reference, if it was sent
		return r;
	});
}

// Runs in a thread of librados. After the token is told nothing is left of it.
void cm_object_turns::answered(rados_completion_t c, void *arg) {
	auto t = static_cast<cm_object_turns *>(arg);
	t->ret = rados_aio_get_return_value(c);
	if (t->ret >= 0) {
		t->ret = 0;
		t->done++;
		if (t->done < t->list.size() && !t->stopped) {
			t->ret = t->next();
			if (t->ret == 0)
				return;
		}
	}
	cmObjectOpDone(t->token);
}

cm_object_turns *cm_object_turns_new(rados_ioctx_t io, const uint64_t *snaps, size_t snap_count, uintptr_t token) {
	cm_object_turns *out = nullptr;
	guarded([&] {
		auto t = std::make_unique<cm_object_turns>();
		librados::IoCtx::from_rados_ioctx_t(io, t->io);
		t->context.assign(snaps, snaps + snap_count);
		t->token = token;
		out = t.release();
		return 0;
	});
	return out;
}

int cm_object_turns_add(cm_object_turns *t, const char *name, size_t name_len, const uint64_t *steps, size_t n,
	const cm_object_op *data) {
	return guarded([&] {
		auto &turn = t->list.emplace_back();
		turn.name.assign(name, name_len);
		return build(turn.todo, steps, n, data);
	});
}

int cm_object_turns_start(cm_object_turns *t) { return t->list.empty() ? -EINVAL : t->next(); }

void cm_object_turns_stop(cm_object_turns *t) { t->stopped = true; }

int cm_object_turns_result(const cm_object_turns *t, size_t *done) {
	*done = t->done;
	return t->ret;
}

void cm_object_turns_free(cm_object_turns *t) { delete t; }
