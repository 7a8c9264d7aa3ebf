#ifndef CEPHMIRROR_LISTSNAPS_H
#define CEPHMIRROR_LISTSNAPS_H

#include <stddef.h>
#include <stdint.h>
#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

// cm_list_snaps asks the OSDs for the clones of n objects at once. Names are
// packed, NUL-terminated. The answer is one malloc'ed block of words, for each
// object in turn:
//   result, as a negative errno; unless it is 0, nothing more:
//   seq, number of clones, for each clone:
//     id, size, number of snaps, snaps, number of overlaps, offset and length of each
int cm_list_snaps(rados_ioctx_t io, const char *names, size_t n, uint64_t **words, size_t *count);

#ifdef __cplusplus
}
#endif

#endif
