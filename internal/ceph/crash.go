package ceph

/*
#cgo CXXFLAGS: -std=c++17
#include "crash.h"
*/
import "C"

// TraceCrashes makes an uncaught exception in a thread of Ceph's libraries print
// where that thread was, to standard error, before the process aborts as it
// would anyway. Go's runtime does not know such threads and prints nothing.
// Called once, early in a process.
func TraceCrashes() { C.cm_trace_crashes() }
