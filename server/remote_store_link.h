// RemoteStoreLink: a StoreLink to a store of which only the control address is known.
//
// The store tells where its data plane listens (GetStore); the answer is kept until a connection
// fails, and asked again then, because a restarted store may listen elsewhere. While the store is
// away every call is UNAVAILABLE: the node serves its processes and tries again.
//
// Thread rule: the node's loop. `stub` outlives this object.
#pragma once

#include <memory>
#include <string>

#include "server/dataplane/store_link.h"
#include "server/dataplane/tcp_store_link.h"
#include "server/rpc/coordinator_stub.h"

namespace reprise {

class RemoteStoreLink final : public dataplane::StoreLink {
 public:
  // `options.address` is filled in from the store's answer.
  RemoteStoreLink(Io& io, rpc::CoordinatorStub& stub, dataplane::TcpStoreLinkOptions options);

  Task<Result<std::unique_ptr<dataplane::ShardUpload>>> OpenUpload(wire::PutOpen request) override;
  Task<Result<std::unique_ptr<dataplane::CheckpointSource>>> OpenRead(Id job,
                                                                      CheckpointKey key) override;
  uint32_t chunk_bytes() const override;
  wire::Source source() const override { return wire::Source::kNvme; }
  Task<void> Close() override;

 private:
  using Link = std::shared_ptr<dataplane::TcpStoreLink>;
  Task<Result<Link>> Connected();
  // Forgets an address that does not answer.
  Task<void> Forget(Link link, Code code);

  Io& io_;
  rpc::CoordinatorStub& stub_;
  dataplane::TcpStoreLinkOptions options_;
  Link link_;
  bool closed_ = false;
  uint32_t chunk_bytes_ = 0;
};

}  // namespace reprise
