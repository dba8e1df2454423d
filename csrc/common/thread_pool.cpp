#include "thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>

namespace openk2 {
namespace {

using Body = void (*)(const void*, int64_t);
using Clock = std::chrono::steady_clock;

// A decode step calls one kernel after the other with a little Python in between. Longer waits sleep, so that a
// core which another process wants is not burnt.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kPausesPerLook = 16;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Looks at `done` for a while; whether it came true.
template <typename Done>
bool spin_until(const Done& done) {
    const auto end = Clock::now() + kSpin;
    do {
        for (int i = 0; i < kPausesPerLook; ++i) {
            if (done()) return true;
            pause();
        }
    } while (Clock::now() < end);
    return false;
}

thread_local bool in_task = false;

class Pool {
   public:
    void set_threads(int threads) {
        const std::lock_guard lock(turn_);
        threads = std::max(threads, 1);
        try {
            for (; started_ < threads - 1; ++started_) std::thread([this, id = started_] { work(id); }).detach();
        } catch (const std::system_error&) {
            threads = started_ + 1;  // the system has no more threads to give
        }
        threads_.store(threads, std::memory_order_relaxed);
    }

    int threads() const { return threads_.load(std::memory_order_relaxed); }

    void run(int64_t tasks, Body body, const void* context) {
        std::unique_lock lock(turn_, std::defer_lock);
        if (tasks <= 1 || in_task || threads() == 1 || !lock.try_lock()) {
            for (int64_t task = 0; task < tasks; ++task) body(context, task);
            return;
        }
        // All tasks of the last loop are done, so nobody can still take one with what is written here.
        body_.store(body, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        unfinished_.store(static_cast<uint32_t>(tasks), std::memory_order_relaxed);
        const uint64_t loop = (untaken_.load(std::memory_order_relaxed) >> 32) + 1;
        untaken_.store(loop << 32 | static_cast<uint64_t>(tasks), std::memory_order_release);
        loops_.fetch_add(1, std::memory_order_release);
        loops_.notify_all();

        take_tasks();
        const auto done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
        if (spin_until(done)) return;
        for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left);
    }

   private:
    void take_tasks() {
        in_task = true;
        uint64_t untaken = untaken_.load(std::memory_order_acquire);
        while (const uint32_t left = static_cast<uint32_t>(untaken)) {
            const Body body = body_.load(std::memory_order_relaxed);
            const void* context = context_.load(std::memory_order_relaxed);
            // Taking a task proves that its loop still runs, hence that body and context are that loop's.
            if (!untaken_.compare_exchange_weak(untaken, untaken - 1, std::memory_order_acq_rel,
                                                std::memory_order_acquire))
                continue;
            body(context, left - 1);
            if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_all();
            untaken = untaken_.load(std::memory_order_acquire);
        }
        in_task = false;
    }

    [[noreturn]] void work(int id) {
        uint32_t seen = 0;
        for (;;) {
            const auto called = [&] { return loops_.load(std::memory_order_acquire) != seen; };
            if (!spin_until(called)) loops_.wait(seen, std::memory_order_acquire);
            seen = loops_.load(std::memory_order_acquire);
            if (id < threads() - 1) take_tasks();
        }
    }

    std::mutex turn_;  // held for a loop's duration
    int started_ = 0;
    std::atomic<int> threads_{1};
    std::atomic<Body> body_{nullptr};
    std::atomic<const void*> context_{nullptr};
    std::atomic<uint32_t> unfinished_{0};
    std::atomic<uint64_t> untaken_{0};  // the loop's number in the upper half, how many tasks are left in the lower
    std::atomic<uint32_t> loops_{0};    // what idle threads sleep on
};

std::atomic<int64_t> least_shared{512 * 1024};

// Never destroyed: its threads may look at it until the process is gone.
Pool& pool() {
    static Pool* const the_pool = new Pool;
    return *the_pool;
}

}  // namespace

void set_num_threads(int threads) { pool().set_threads(threads); }
int num_threads() { return pool().threads(); }
void set_least_shared_bytes(int64_t bytes) { least_shared.store(bytes, std::memory_order_relaxed); }
int64_t least_shared_bytes() { return least_shared.load(std::memory_order_relaxed); }
void run_tasks(int64_t tasks, Body body, const void* context) { pool().run(tasks, body, context); }

}  // namespace openk2
