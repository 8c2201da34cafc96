// RealStore: the product's store on a real directory: real clock, the Io engine that REPRISE_IO
// names, RocksDB as index. What a daemon's store role is, without sockets.
//
// Thread rule: one thread, which runs the loop. RocksDB and the engines have threads of their own.
#pragma once

#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/io/io.h"
#include "server/lifecycle/store.h"

namespace reprise::crash {

// Small enough that a scenario takes milliseconds. Windows that only wait are short.
lifecycle::StoreOptions SmallStore(const std::string& directory);

class RealStore {
 public:
  RealStore() : loop_(clock_), rng_(RandomSeed()) {}
  ~RealStore();

  Status Open(lifecycle::StoreOptions options);
  void Close();

  template <typename T>
  T Run(Task<T> task) {
    return loop_.RunTask(std::move(task));
  }
  lifecycle::Store& store() { return *store_; }
  bool is_open() const { return store_ != nullptr; }
  Loop& loop() { return loop_; }
  Rng& rng() { return rng_; }
  TimePoint In(Nanos span) { return loop_.Now() + span; }

 private:
  SystemClock clock_;
  Loop loop_;
  Rng rng_;
  std::unique_ptr<Io> io_;
  std::unique_ptr<lifecycle::Store> store_;
};

}  // namespace reprise::crash
