#include "watchers.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <list>
#include <new>
#include <string>

#include <rados/librados.hpp>

namespace {

int list(rados_ioctx_t p, const char *oid, cm_watcher **watchers, size_t *count) {
	librados::IoCtx io;
	librados::IoCtx::from_rados_ioctx_t(p, io);
	std::list<obj_watch_t> found;
	int r = io.list_watchers(oid, &found);
	if (r < 0)
		return r;
	*count = 0;
	*watchers = static_cast<cm_watcher *>(calloc(found.size() + 1, sizeof(cm_watcher)));
	if (!*watchers)
		return -ENOMEM;
	for (const auto &f : found) {
		cm_watcher &w = (*watchers)[(*count)++];
		memcpy(w.addr, f.addr, sizeof(w.addr) - 1);
		w.client = f.watcher_id;
		w.cookie = f.cookie;
	}
	return 0;
}

} // namespace

int cm_list_watchers(rados_ioctx_t io, const char *oid, cm_watcher **watchers, size_t *count) {
	try {
		return list(io, oid, watchers, count);
	} catch (const std::bad_alloc &) {
		return -ENOMEM;
	} catch (...) {
		return -EIO;
	}
}
