// Runs a program: a list of steps, each shared by a fixed team of threads that meet after every one of them.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <vector>
#include <sched.h>

#include "convolution.h"
#include "maps.h"

namespace {

void run_share(const Op& op, Share share) {
    switch (op.kind) {
        case QUANTIZE: return quantize(op, share);
        case CONVOLUTION: return convolution(op, share);
        case PRODUCT: return product(op, share);
        case DEPTHWISE: return depthwise(op, share);
        case STATISTICS: return statistics(op, share);
        case NORM: return norm(op, share);
        case MAXIMUM: return maximum(op, share);
        case MEAN: return mean(op, share);
    }
}

// Waiting spins first, for a step takes microseconds; then it lets others run, for there may be fewer cores than threads.
template <class Ready>
void wait(Ready ready, int spins) {
    for (int i = 0; !ready(); i++) {
        if (i < spins) _mm_pause();
        else sched_yield();
    }
}

constexpr int SPINS = 4000;         // about 50 us
constexpr int IDLE_YIELDS = 20000;  // then a thread sleeps until the next run

class Team {
  public:
    explicit Team(int threads) : threads_(threads) {
        try {
            for (int t = 1; t < threads; t++) workers_.emplace_back([this, t] { work(t); });
        } catch (...) {  // the system gives no more threads
            stop();
            throw;
        }
    }

    ~Team() { stop(); }

    void run(const Op* ops, int count, int64_t* nanoseconds) {
        ops_ = ops, count_ = count;
        start();
        steps(0, nanoseconds);
    }

  private:
    void stop() {
        ops_ = nullptr;
        start();
        for (auto& worker : workers_) worker.join();
    }

    void start() {
        generation_.fetch_add(1);  // before the look at who sleeps: one falling asleep now sees it or is seen
        if (sleeping_.load()) generation_.notify_all();
    }

    void work(int thread) {
        for (unsigned seen = 0;; seen++) {
            for (int i = 0; generation_.load(std::memory_order_acquire) == seen; i++) {
                if (i < SPINS) _mm_pause();
                else if (i < IDLE_YIELDS) sched_yield();
                else {
                    sleeping_.fetch_add(1);
                    generation_.wait(seen);
                    sleeping_.fetch_sub(1);
                }
            }
            if (!ops_) return;
            steps(thread, nullptr);
        }
    }

    void steps(int thread, int64_t* nanoseconds) {
        using Clock = std::chrono::steady_clock;
        for (int i = 0; i < count_; i++) {
            const auto started = nanoseconds ? Clock::now() : Clock::time_point();
            run_share(ops_[i], {thread, threads_});
            meet();
            if (nanoseconds) nanoseconds[i] = std::chrono::nanoseconds(Clock::now() - started).count();
        }
    }

    void meet() {
        if (threads_ == 1) return;
        const unsigned phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
        } else {
            wait([&] { return phase_.load(std::memory_order_acquire) != phase; }, SPINS);
        }
    }

    const int threads_;
    const Op* ops_ = nullptr;
    int count_ = 0;
    alignas(64) std::atomic<unsigned> generation_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> phase_{0};
    std::vector<std::thread> workers_;
};

}  // namespace

extern "C" {

int native_size_of_op() { return sizeof(Op); }
Team* native_open(int threads) {  // null where the threads cannot be had
    try {
        return new Team(threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}
void native_run(Team* team, const Op* ops, int count, int64_t* nanoseconds) { team->run(ops, count, nanoseconds); }
void native_close(Team* team) { delete team; }

}
