#include "queue.h"

#include <atomic>
#include <thread>
#include <utility>

namespace stand_in {

namespace {

std::atomic<std::chrono::nanoseconds> delay{std::chrono::nanoseconds(0)};

}  // namespace

void set_delay(std::chrono::nanoseconds value) { delay = value; }

Queue::Ticket Queue::submit(Task task, bool is_late) {
  const auto now = std::chrono::steady_clock::now();
  const std::lock_guard<std::mutex> lock(mutex_);
  entries_.push_back({std::move(task), is_late ? now + delay.load() : now});
  // Queues live as long as the process, and so do their threads.
  if (submitted_ == 0) std::thread(&Queue::run, this).detach();
  was_submitted_.notify_one();
  return ++submitted_;
}

Queue::Ticket Queue::last() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return submitted_;
}

bool Queue::has_finished(Ticket ticket) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return finished_ >= ticket;
}

void Queue::wait(Ticket ticket) const {
  std::unique_lock<std::mutex> lock(mutex_);
  has_ended_.wait(lock, [&] { return finished_ >= ticket; });
}

void Queue::run() noexcept {
  while (true) {
    Entry entry;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      was_submitted_.wait(lock, [&] { return !entries_.empty(); });
      entry = std::move(entries_.front());
      entries_.pop_front();
    }
    std::this_thread::sleep_until(entry.earliest);
    entry.task();
    // Whoever waits for the task may rely on it that all it kept has been freed.
    entry.task = nullptr;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++finished_;
    }
    has_ended_.notify_all();
  }
}

}  // namespace stand_in
