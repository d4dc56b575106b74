#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define FASTCTC_HAS_FORK
#endif

namespace fastctc {
namespace {

class Pool {
 public:
  std::atomic_flag busy = ATOMIC_FLAG_INIT;

  void run(int helpers, const std::function<void(int)>& work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      if (helpers > size_) helpers = size_;
      work_ = &work;
      wanted_ = helpers_ = helpers;
      running_.store(helpers, std::memory_order_relaxed);
    }
    if (helpers > 0) start_.notify_all();
    work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    // helpers that have not woken up by now have nothing left to do
    running_.fetch_sub(wanted_, std::memory_order_relaxed);
    wanted_ = 0;
    lock.unlock();
    wait_awake();
    lock.lock();
    done_.wait(lock, [this] { return running_.load(std::memory_order_relaxed) == 0; });
    work_ = nullptr;
  }

 private:
  // Being put to sleep and woken takes 40 us, about as long as the helpers, woken late, usually still need.
  void wait_awake() const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    while (running_.load(std::memory_order_relaxed) > 0 && std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
  }

  void grow(int helpers) {
    while (size_ < helpers) {
      try {
        std::thread([this, index = size_ + 1] { serve(index); }).detach();
      } catch (const std::exception&) {  // no thread or no memory to be had: fewer serve
        return;
      }
      ++size_;
    }
  }

  void serve(int index) {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return wanted_ > 0 && index <= helpers_; });
      --wanted_;
      const std::function<void(int)>& work = *work_;
      lock.unlock();
      work(index);
      lock.lock();
      if (running_.fetch_sub(1, std::memory_order_relaxed) == 1) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int)>* work_ = nullptr;
  int size_ = 0;                 // threads there are
  int helpers_ = 0;              // how many of them, from the first on, may join the current work
  int wanted_ = 0;               // helpers still to join it
  std::atomic<int> running_{0};  // helpers wanted or at work; changed under the mutex
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of them and starts over with a
// pool of its own, whatever state the parent's was in.
std::atomic<Pool*> the_pool{nullptr};

Pool* pool() {
  Pool* current = the_pool.load();
  if (current) return current;
  Pool* fresh = new Pool;
  if (the_pool.compare_exchange_strong(current, fresh)) return fresh;
  delete fresh;
  return current;
}

#ifdef FASTCTC_HAS_FORK
const int fork_handler = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
#endif

}  // namespace

void run_on_threads(int threads, const std::function<void(int)>& work) {
  if (threads <= 1) return work(0);
  Pool* p = pool();
  if (p->busy.test_and_set(std::memory_order_acquire)) return work(0);
  p->run(threads - 1, work);
  p->busy.clear(std::memory_order_release);
}

}  // namespace fastctc
