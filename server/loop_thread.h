// LoopThread: a thread with its own Loop and Io engine, as the daemon runs one for each role.
//
// Call runs a task on the loop from another thread and waits for its value; Start-up and shutdown of
// the daemon are sequences of such calls. Everything that lives on the loop must be destroyed through
// Call, or after Join.
//
// Thread rule: the owner's thread, which must not be the loop's.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "core/async/loop.h"
#include "core/base/clock.h"
#include "core/io/io.h"

namespace reprise {

class LoopThread {
 public:
  LoopThread() : loop_(clock_) {}
  ~LoopThread() { Join(); }

  // Makes the engine and starts the thread. Fails when the engine that was asked for cannot run.
  Status Start(IoOptions options) {
    Result<std::unique_ptr<Io>> io = CreateIo(loop_, std::move(options));
    if (!io.has_value()) return io.error();
    io_ = std::move(*io);
    thread_ = std::thread([this] { loop_.Run(); });
    return OkStatus();
  }

  // Ends the loop. Whatever is still suspended on it is destroyed later, with this object.
  void Join() {
    if (!thread_.joinable()) return;
    loop_.Stop();
    thread_.join();
  }

  template <typename T>
  T Call(std::function<Task<T>()> make) {
    std::promise<T> promise;
    std::future<T> future = promise.get_future();
    loop_.Post([this, &make, &promise] { loop_.Spawn(Execute<T>(make, promise)); });
    return future.get();
  }
  // The same for plain functions.
  template <typename Function>
  auto Do(Function function) {
    using T = decltype(function());
    std::promise<T> promise;
    std::future<T> future = promise.get_future();
    loop_.Post([&] {
      if constexpr (std::is_void_v<T>) {
        function();
        promise.set_value();
      } else {
        promise.set_value(function());
      }
    });
    return future.get();
  }

  Loop& loop() { return loop_; }
  Io& io() { return *io_; }

 private:
  // References stay valid: the caller waits for the promise.
  template <typename T>
  static Task<void> Execute(std::function<Task<T>()>& make, std::promise<T>& promise) {
    if constexpr (std::is_void_v<T>) {
      co_await make();
      promise.set_value();
    } else {
      promise.set_value(co_await make());
    }
  }

  SystemClock clock_;
  Loop loop_;
  std::unique_ptr<Io> io_;
  std::thread thread_;
};

}  // namespace reprise
