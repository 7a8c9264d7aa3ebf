#pragma once

#ifdef __cplusplus
extern "C" {
#endif

void cm_trace_crashes(void);

#ifdef __cplusplus
}
#endif
