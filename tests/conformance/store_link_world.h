// The worlds that the StoreLink suite runs in: a node's loop, a store's loop, and a link between.
//
//   TcpSimulated      StoreServer and TcpStoreLink over SimIo, two hosts with a loop each
//   TcpLoopback       the same over a real Io (REPRISE_IO picks the engine), one loop
//   LocalOneLoop      LocalStoreLink, both roles on one simulated loop
//   LocalTwoThreads   LocalStoreLink, the store's loop on a thread of its own with a real Io
//
// Thread rule: the test's thread; OnStore runs its argument where the store lives.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include "core/async/sync.h"
#include "core/base/check.h"
#include "core/io/buffer_pool.h"
#include "core/io/io.h"
#include "core/io/sim_io.h"
#include "core/io/sim_world.h"
#include "server/dataplane/local_store_link.h"
#include "server/dataplane/store_server.h"
#include "server/dataplane/tcp_store_link.h"
#include "tests/unit/dataplane/fake_shard_store.h"

namespace reprise::dataplane {

struct WorldOptions {
  uint32_t chunk_bytes = 8192;
  uint32_t credits = 4;
  uint32_t read_depth = 3;
  uint32_t buffers = 8;
  Nanos progress_timeout = std::chrono::seconds(30);
};

class LinkWorld {
 public:
  virtual ~LinkWorld() = default;
  virtual Loop& node_loop() = 0;
  virtual Loop& store_loop() = 0;
  virtual StoreLink& link() = 0;
  virtual FakeShardStore& store() = 0;
  // Time is simulated: waiting for a timeout costs nothing.
  virtual bool simulated() const = 0;
  // Closes link and server; returns when both are gone.
  virtual void Close() = 0;

  // Runs `work` on the store's loop and waits for it.
  virtual void OnStore(std::function<void(FakeShardStore&)> work) {
    Status ran =
        node_loop().RunTask(CallOn<Status>(node_loop(), store_loop(), [&]() -> Task<Status> {
          return
              [](std::function<void(FakeShardStore&)>* call, FakeShardStore* fake) -> Task<Status> {
                (*call)(*fake);
                co_return OkStatus();
              }(&work, &store());
        }));
    REPRISE_CHECK(ran.ok());
  }
  // Lets both loops run until `condition` holds on the store's side.
  void UntilStore(std::function<bool(FakeShardStore&)> condition) {
    for (;;) {
      bool holds = false;
      OnStore([&](FakeShardStore& fake) { holds = condition(fake); });
      if (holds) return;
      // Time must pass for a simulated network to deliver.
      Loop& loop = node_loop();
      loop.RunTask([](Loop& ours) -> Task<void> {
        co_await ours.Sleep(std::chrono::microseconds(100));
      }(loop));
    }
  }
  Status Run(Task<Status> task) { return node_loop().RunTask(std::move(task)); }
};

inline StoreServerOptions ServerOptions(const WorldOptions& options, std::string address) {
  StoreServerOptions server;
  server.address = std::move(address);
  server.description = "store under test";
  server.credits = options.credits;
  server.read_depth = options.read_depth;
  server.receive_buffers = options.buffers;
  server.send_buffers = options.buffers;
  return server;
}

inline TcpStoreLinkOptions LinkOptions(const WorldOptions& options, std::string address) {
  TcpStoreLinkOptions link;
  link.address = std::move(address);
  link.description = "node under test";
  link.progress_timeout = options.progress_timeout;
  link.seal_timeout = options.progress_timeout;
  return link;
}

// A server and a link over two Ios, which may be one.
class TcpPair {
 public:
  TcpPair(Io& node_io, Io& store_io, const std::string& address, const WorldOptions& options)
      : node_loop_(node_io.loop()),
        store_loop_(store_io.loop()),
        store_(store_io.loop(), options.chunk_bytes),
        server_(store_io, store_, ServerOptions(options, address)) {
    Status started = store_io.loop().RunTask(server_.Start());
    REPRISE_CHECK(started.ok(), started.message());
    link_ = std::make_unique<TcpStoreLink>(node_io, LinkOptions(options, server_.address()));
  }
  void Close() {
    node_loop_.RunTask(link_->Close());
    store_loop_.RunTask(server_.Close());
  }
  StoreLink& link() { return *link_; }
  FakeShardStore& store() { return store_; }

 private:
  Loop& node_loop_;
  Loop& store_loop_;
  FakeShardStore store_;
  StoreServer server_;
  std::unique_ptr<TcpStoreLink> link_;
};

class TcpSimulated final : public LinkWorld {
 public:
  explicit TcpSimulated(const WorldOptions& options)
      : world_(7),
        store_loop_(world_.NewLoop()),
        node_io_(world_.loop(), world_, "node"),
        store_io_(store_loop_, world_, "store"),
        pair_(node_io_, store_io_, "store:7000", options) {
    world_.net().faults.segment = true;
  }
  Loop& node_loop() override { return world_.loop(); }
  Loop& store_loop() override { return store_loop_; }
  StoreLink& link() override { return pair_.link(); }
  FakeShardStore& store() override { return pair_.store(); }
  bool simulated() const override { return true; }
  void Close() override { pair_.Close(); }

 private:
  SimWorld world_;
  Loop& store_loop_;
  SimIo node_io_;
  SimIo store_io_;
  TcpPair pair_;
};

class TcpLoopback final : public LinkWorld {
 public:
  explicit TcpLoopback(const WorldOptions& options)
      : loop_(clock_), io_(CreateIo(loop_).value()), pair_(*io_, *io_, "127.0.0.1:0", options) {}
  Loop& node_loop() override { return loop_; }
  Loop& store_loop() override { return loop_; }
  StoreLink& link() override { return pair_.link(); }
  FakeShardStore& store() override { return pair_.store(); }
  bool simulated() const override { return false; }
  void Close() override { pair_.Close(); }

 private:
  SystemClock clock_;
  Loop loop_;
  std::unique_ptr<Io> io_;
  TcpPair pair_;
};

inline LocalStoreLinkOptions LocalOptions(const WorldOptions& options) {
  return {options.credits, options.read_depth, options.progress_timeout};
}

class LocalOneLoop final : public LinkWorld {
 public:
  explicit LocalOneLoop(const WorldOptions& options)
      : world_(7),
        io_(world_.loop(), world_, "both"),
        store_(world_.loop(), options.chunk_bytes),
        buffers_(BufferPool::Create(io_, {options.chunk_bytes, options.buffers}).value()),
        link_(world_.loop(), world_.loop(), store_, *buffers_, LocalOptions(options)) {}
  Loop& node_loop() override { return world_.loop(); }
  Loop& store_loop() override { return world_.loop(); }
  StoreLink& link() override { return link_; }
  FakeShardStore& store() override { return store_; }
  bool simulated() const override { return true; }
  void Close() override { world_.loop().RunTask(link_.Close()); }

 private:
  SimWorld world_;
  SimIo io_;
  FakeShardStore store_;
  std::unique_ptr<BufferPool> buffers_;
  LocalStoreLink link_;
};

class LocalTwoThreads final : public LinkWorld {
 public:
  explicit LocalTwoThreads(const WorldOptions& options)
      : node_loop_(clock_), store_loop_(clock_), io_(CreateIo(node_loop_).value()) {
    std::promise<void> ready;
    thread_ = std::thread([this, options, &ready] {
      std::unique_ptr<Io> io = CreateIo(store_loop_).value();
      auto buffers = BufferPool::Create(*io, {options.chunk_bytes, options.buffers}).value();
      FakeShardStore store(store_loop_, options.chunk_bytes);
      store_ = &store;
      buffers_ = buffers.get();
      ready.set_value();
      store_loop_.Run();
      store_loop_.DestroyAll();
    });
    ready.get_future().wait();
    link_ = std::make_unique<LocalStoreLink>(node_loop_, store_loop_, *store_, *buffers_,
                                             LocalOptions(options));
  }
  ~LocalTwoThreads() override {
    store_loop_.Stop();
    thread_.join();
  }
  Loop& node_loop() override { return node_loop_; }
  Loop& store_loop() override { return store_loop_; }
  StoreLink& link() override { return *link_; }
  FakeShardStore& store() override { return *store_; }
  bool simulated() const override { return false; }
  void Close() override { node_loop_.RunTask(link_->Close()); }

 private:
  SystemClock clock_;
  Loop node_loop_;
  Loop store_loop_;
  std::unique_ptr<Io> io_;
  FakeShardStore* store_ = nullptr;  // these two live on the thread's stack
  BufferPool* buffers_ = nullptr;
  std::thread thread_;
  std::unique_ptr<LocalStoreLink> link_;
};

// "TcpSimulated", ...: makes the world of that name.
inline std::unique_ptr<LinkWorld> MakeLinkWorld(const std::string& name, WorldOptions options) {
  if (name == "TcpSimulated") return std::make_unique<TcpSimulated>(options);
  if (name == "TcpLoopback") return std::make_unique<TcpLoopback>(options);
  if (name == "LocalOneLoop") return std::make_unique<LocalOneLoop>(options);
  REPRISE_CHECK(name == "LocalTwoThreads", name);
  return std::make_unique<LocalTwoThreads>(options);
}

}  // namespace reprise::dataplane
