#include "thread_pool.h"

#include <atomic>
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

  void run(int helpers, const std::function<void()>& work) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      if (helpers > size_) helpers = size_;
      work_ = &work;
      wanted_ = running_ = helpers;
    }
    if (helpers > 0) start_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    // helpers that have not woken up by now have nothing left to do
    running_ -= wanted_;
    wanted_ = 0;
    done_.wait(lock, [this] { return running_ == 0; });
    work_ = nullptr;
  }

 private:
  void grow(int helpers) {
    while (size_ < helpers) {
      try {
        std::thread([this] { serve(); }).detach();
      } catch (const std::exception&) {  // no thread or no memory to be had: fewer serve
        return;
      }
      ++size_;
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      const std::function<void()>& work = *work_;
      lock.unlock();
      work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void()>* work_ = nullptr;
  int size_ = 0;     // threads there are
  int wanted_ = 0;   // helpers still to join the current work
  int running_ = 0;  // helpers wanted or at work
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

void run_on_threads(int threads, const std::function<void()>& work) {
  if (threads <= 1) return work();
  Pool* p = pool();
  if (p->busy.test_and_set(std::memory_order_acquire)) return work();
  p->run(threads - 1, work);
  p->busy.clear(std::memory_order_release);
}

}  // namespace fastctc
