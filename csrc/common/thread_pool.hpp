// The one pool of threads that all kernels share. No C++ library header here: kernels include this file.
//
//     parallel_for(tasks, [&](int64_t task) { ... });
//
// The caller works too, and takes every task that no other thread has taken: a pool whose threads are late, asleep or
// lost (after a fork) costs time and never the result. What a task computes must not depend on who computes it or on
// the number of threads; cut the work by its shape alone.
#pragma once

#include <stdint.h>

namespace openk2 {

// Threads that work on a loop, the caller among them; 1 until it is set. Fewer than 1 counts as 1.
void set_num_threads(int threads);
int num_threads();

// Loops that read less than this are over before another thread is there. Tests set it to 0, so that small tensors go
// through the pool.
void set_least_shared_bytes(int64_t bytes);
int64_t least_shared_bytes();

// Calls body(context, task) for each task in [0, tasks), and returns when all are done. From within a task, or while
// another caller's loop runs, the tasks run one after the other on the calling thread. At most 2^32 - 1 tasks; a body
// must not throw.
void run_tasks(int64_t tasks, void (*body)(const void* context, int64_t task), const void* context);

namespace {  // one copy per translation unit: each is compiled for its own instruction set

template <typename Body>
inline void parallel_for(int64_t tasks, const Body& body) {
    run_tasks(
        tasks, [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body);
}

// The same for tasks that read about `bytes` bytes in all: few are left to the caller.
template <typename Body>
inline void parallel_for(int64_t tasks, int64_t bytes, const Body& body) {
    if (bytes >= least_shared_bytes()) return parallel_for(tasks, body);
    for (int64_t task = 0; task < tasks; ++task) body(task);
}

}  // namespace
}  // namespace openk2
