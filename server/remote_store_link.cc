#include "server/remote_store_link.h"

#include <utility>

#include "core/base/check.h"

namespace reprise {

RemoteStoreLink::RemoteStoreLink(Io& io, rpc::CoordinatorStub& stub,
                                 dataplane::TcpStoreLinkOptions options)
    : io_(io), stub_(stub), options_(std::move(options)) {}

Task<Result<RemoteStoreLink::Link>> RemoteStoreLink::Connected() {
  if (closed_) co_return Error(Code::kCancelled, "the daemon is shutting down");
  if (link_ != nullptr) co_return link_;
  REPRISE_CO_ASSIGN(std::string address, co_await stub_.DataAddress());
  // Another call may have been faster while this one waited.
  if (link_ == nullptr) {
    options_.address = address;
    link_ = std::make_shared<dataplane::TcpStoreLink>(io_, options_);
  }
  co_return link_;
}

Task<void> RemoteStoreLink::Forget(Link link, Code code) {
  bool away = code == Code::kUnavailable || code == Code::kDeadlineExceeded;
  if (!away || link_ != link) co_return;
  link_.reset();
  co_await link->Close();
}

Task<Result<std::unique_ptr<dataplane::ShardUpload>>> RemoteStoreLink::OpenUpload(
    wire::PutOpen request) {
  REPRISE_CO_ASSIGN(Link link, co_await Connected());
  auto upload = co_await link->OpenUpload(std::move(request));
  if (link->chunk_bytes() != 0) chunk_bytes_ = link->chunk_bytes();
  if (!upload.has_value()) co_await Forget(link, upload.error().code());
  co_return upload;
}

Task<Result<std::unique_ptr<dataplane::CheckpointSource>>> RemoteStoreLink::OpenRead(
    Id job, CheckpointKey key) {
  REPRISE_CO_ASSIGN(Link link, co_await Connected());
  auto source = co_await link->OpenRead(job, key);
  if (link->chunk_bytes() != 0) chunk_bytes_ = link->chunk_bytes();
  if (!source.has_value()) co_await Forget(link, source.error().code());
  co_return source;
}

uint32_t RemoteStoreLink::chunk_bytes() const { return chunk_bytes_; }

Task<void> RemoteStoreLink::Close() {
  closed_ = true;
  if (link_ != nullptr) co_await std::exchange(link_, nullptr)->Close();
}

}  // namespace reprise
