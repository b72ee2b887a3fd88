// A stream's queue.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>

namespace stand_in {

// Tasks that a thread of the queue's own runs, one after the other.
class Queue {
 public:
  using Task = std::function<void()>;
  // The number of a task in its queue, from 1 on. 0 stands for no task.
  using Ticket = uint64_t;

  Queue() = default;
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  // The task runs when those that were submitted before it have ended and, unless `is_late` is
  // false, the delay has passed. It must not throw.
  Ticket submit(Task task, bool is_late = true);
  // Of the task that was submitted last.
  Ticket last() const;
  bool has_finished(Ticket ticket) const;
  void wait(Ticket ticket) const;

 private:
  struct Entry {
    Task task;
    std::chrono::steady_clock::time_point earliest;
  };

  void run() noexcept;

  mutable std::mutex mutex_;
  std::condition_variable was_submitted_;
  mutable std::condition_variable has_ended_;
  std::deque<Entry> entries_;
  Ticket submitted_ = 0;
  Ticket finished_ = 0;
};

// Every task that is submitted from now on runs at least so much later. Tasks that are submitted
// together so are late together, and not by a multiple of the delay.
void set_delay(std::chrono::nanoseconds delay);

}  // namespace stand_in
