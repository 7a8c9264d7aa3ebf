package bed

import (
	"net"
	"strconv"
	"time"
)

// socketAnswers says whether somebody listens on a socket.
func socketAnswers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// portAnswers says whether somebody listens on a loopback port.
func portAnswers(port int) bool {
	c, err := net.DialTimeout("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
