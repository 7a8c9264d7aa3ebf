#ifndef CEPHMIRROR_OBJECTIO_H
#define CEPHMIRROR_OBJECTIO_H

#include <stddef.h>
#include <stdint.h>
#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

// An operation on one object that is under way, or done and holding its answer.
// Each of the calls that start one returns 0 and sets *out, or returns a
// negative errno. Of every one that was started cmObjectOpDone is told once,
// from another thread; until then it must not be freed.
typedef struct cm_object_op cm_object_op;

// Steps of a write, each five words: kind, offset, length, part, and where in
// that part of the data.
enum {
	CM_STEP_CREATE = 1,
	CM_STEP_CREATE_EXCLUSIVE,
	CM_STEP_ASSERT_EXISTS,
	CM_STEP_REMOVE,
	CM_STEP_WRITE,
	CM_STEP_ZERO,
	CM_STEP_TRUNCATE, // offset: the new size
	CM_STEP_HINT,     // length: of a whole object
};

// cm_object_list asks for an object's clones.
int cm_object_list(rados_ioctx_t io, const char *name, size_t name_len, uintptr_t token, cm_object_op **out);

// cm_object_read reads extents, given as offsets and lengths, at a snapshot.
int cm_object_read(rados_ioctx_t io, const char *name, size_t name_len, uint64_t snap, const uint64_t *extents,
	size_t n, uintptr_t token, cm_object_op **out);

// cm_object_write carries steps out under a snapshot context, newest first.
// The data comes from a read that is done, or from cm_object_data; it is not
// copied, and may be freed as soon as this returns.
int cm_object_write(rados_ioctx_t io, const char *name, size_t name_len, const uint64_t *snaps, size_t snap_count,
	const uint64_t *steps, size_t n, const cm_object_op *data, uintptr_t token, cm_object_op **out);

// cm_object_data holds a copy of bytes as if they had been read: one part.
cm_object_op *cm_object_data(const void *bytes, size_t n);

// cm_object_result is what a finished operation returned.
int cm_object_result(const cm_object_op *op);

// cm_object_answer returns the words of a finished operation's answer; they
// live as long as it. Of a list: as cm_list_snaps has them, without the result.
// Of a read, for each part: number of extents that hold data, offset and length
// of each.
int cm_object_answer(cm_object_op *op, const uint64_t **words, size_t *count);

// cm_object_part returns the bytes of a part in one piece: what its extents
// hold, one after the other. They live as long as the operation.
int cm_object_part(cm_object_op *op, size_t part, const void **bytes, size_t *n);

// cm_object_cancel makes an operation end soon, if it has not. What was sent
// may still be carried out.
void cm_object_cancel(cm_object_op *op);

void cm_object_free(cm_object_op *op);

// Writes that are carried out one after the other: each is sent by the thread of
// librados that takes the answer to the one before, without a detour.
typedef struct cm_object_turns cm_object_turns;

// cm_object_turns_new returns NULL when there is no memory.
cm_object_turns *cm_object_turns_new(rados_ioctx_t io, const uint64_t *snaps, size_t snap_count, uintptr_t token);

// cm_object_turns_add adds a write, as cm_object_write does it.
int cm_object_turns_add(cm_object_turns *t, const char *name, size_t name_len, const uint64_t *steps, size_t n,
	const cm_object_op *data);

// cm_object_turns_start sends the first. If it returns 0, cmObjectOpDone is told
// once, after the last or the first that fails.
int cm_object_turns_start(cm_object_turns *t);

// cm_object_turns_stop makes the one that is under way the last.
void cm_object_turns_stop(cm_object_turns *t);

// cm_object_turns_result is what the last one returned, and how many succeeded.
int cm_object_turns_result(const cm_object_turns *t, size_t *done);

void cm_object_turns_free(cm_object_turns *t);

// cmObjectOpDone is ours, in Go.
void cmObjectOpDone(uintptr_t token);

#ifdef __cplusplus
}
#endif

#endif
