// Package client makes connections to Ceph clusters for the engines: configured
// as a daemon of that name would be, with calls that come to an end, and without
// sockets and log files of their own.
package client
