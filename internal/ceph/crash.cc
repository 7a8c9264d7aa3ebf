#include "crash.h"

#include <cxxabi.h>
#include <execinfo.h>
#include <unistd.h>

#include <cstring>
#include <exception>
#include <typeinfo>

namespace {

std::terminate_handler former;

void tell(const char* text) {
  if (write(STDERR_FILENO, text, strlen(text)) < 0) {
    return; // there is nobody to tell
  }
}

void trace() {
  tell("C++ exception nobody caught");
  if (const std::type_info* type = abi::__cxa_current_exception_type()) {
    tell(": ");
    tell(type->name());
  }
  tell("; the thread was at\n");
  void* frames[64];
  backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
  former(); // says what the exception says, and aborts
}

} // namespace

void cm_trace_crashes() {
  std::terminate_handler now = std::get_terminate();
  if (now == trace) {
    return;
  }
  former = now;
  std::set_terminate(trace);
}
