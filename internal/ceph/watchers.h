#ifndef CEPHMIRROR_WATCHERS_H
#define CEPHMIRROR_WATCHERS_H

#include <stdint.h>
#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

struct cm_watcher {
	char addr[256]; // NUL-terminated
	int64_t client;
	uint64_t cookie;
};

// cm_list_watchers returns who watches an object, in one malloc'ed block.
int cm_list_watchers(rados_ioctx_t io, const char *oid, struct cm_watcher **watchers, size_t *count);

#ifdef __cplusplus
}
#endif

#endif
