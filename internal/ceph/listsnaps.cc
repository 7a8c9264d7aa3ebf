#include "listsnaps.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include <rados/librados.hpp>

namespace {

// A question that is under way must not go away: its answer is written here.
struct question {
	librados::ObjectReadOperation op;
	librados::snap_set_t set;
	int ret = 0;
	librados::AioCompletion *done = nullptr;
	bool asked = false;

	question() = default;
	question(const question &) = delete;
	question &operator=(const question &) = delete;

	~question() {
		if (!done)
			return;
		if (asked)
			done->wait_for_complete();
		done->release();
	}
};

int list(rados_ioctx_t p, const char *names, size_t n, uint64_t **words, size_t *count) {
	librados::IoCtx given, io;
	librados::IoCtx::from_rados_ioctx_t(p, given);
	io.dup(given); // the snapshot to read is a property of the context
	io.snap_set_read(LIBRADOS_SNAP_DIR);

	std::vector<uint64_t> out;
	// A deque never moves what it holds.
	std::deque<question> questions;
	for (size_t i = 0; i < n; i++) {
		std::string name(names);
		names += name.size() + 1;
		question &q = questions.emplace_back();
		q.op.list_snaps(&q.set, &q.ret);
		q.done = librados::Rados::aio_create_completion();
		int r = io.aio_operate(name, q.done, &q.op, nullptr);
		if (r < 0)
			return r;
		q.asked = true;
	}
	for (question &q : questions) {
		q.done->wait_for_complete();
		int r = q.done->get_return_value();
		if (r >= 0)
			r = q.ret;
		out.push_back(uint64_t(int64_t(r < 0 ? r : 0)));
		if (r < 0)
			continue;
		out.push_back(q.set.seq);
		out.push_back(q.set.clones.size());
		for (const auto &c : q.set.clones) {
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
	}
	size_t bytes = out.size() * sizeof(uint64_t);
	*words = static_cast<uint64_t *>(malloc(bytes ? bytes : 1));
	if (!*words)
		return -ENOMEM;
	memcpy(*words, out.data(), bytes);
	*count = out.size();
	return 0;
}

} // namespace

int cm_list_snaps(rados_ioctx_t io, const char *names, size_t n, uint64_t **words, size_t *count) {
	// Nothing but a return value may leave for C.
	try {
		return list(io, names, n, words, count);
	} catch (const std::bad_alloc &) {
		return -ENOMEM;
	} catch (...) {
		return -EIO;
	}
}
