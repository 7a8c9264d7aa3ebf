// Preloaded, this makes a program connect to other ports of this machine than it
// means: REDIRECT_PORTS has pairs of ports, 6800=40001,6801=40002.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static unsigned short instead[65536];

__attribute__((constructor)) static void read_ports(void)
{
	const char *p = getenv("REDIRECT_PORTS");
	while (p && *p) {
		char *end;
		unsigned long from = strtoul(p, &end, 10);
		if (*end != '=')
			return;
		unsigned long to = strtoul(end + 1, &end, 10);
		if (from < 65536 && to < 65536)
			instead[from] = to;
		p = *end == ',' ? end + 1 : NULL;
	}
}

int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	static int (*next)(int, const struct sockaddr *, socklen_t);
	if (!next)
		next = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
	if (addr && addr->sa_family == AF_INET && len >= sizeof(struct sockaddr_in)) {
		struct sockaddr_in to;
		memcpy(&to, addr, sizeof to);
		unsigned short port = instead[ntohs(to.sin_port)];
		if (port && to.sin_addr.s_addr == htonl(INADDR_LOOPBACK)) {
			to.sin_port = htons(port);
			return next(fd, (struct sockaddr *)&to, sizeof to);
		}
	}
	return next(fd, addr, len);
}
