#include "server/web/http_server.h"

#include <httplib.h>

#include <charconv>
#include <thread>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::web {
namespace {

constexpr size_t kRequestBytesMax = 16 * 1024;
constexpr int kThreads = 2;

class Server final : public HttpServer {
 public:
  explicit Server(HttpHandlers handlers) : handlers_(std::move(handlers)) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_payload_max_length(kRequestBytesMax);
    server_.set_keep_alive_max_count(16);
    server_.set_read_timeout(5);
    server_.set_write_timeout(5);
    server_.Get("/healthz", [this](const auto&, auto& out) { Answer(handlers_.health(), out); });
    server_.Get("/readyz", [this](const auto&, auto& out) { Answer(handlers_.ready(), out); });
    server_.Get("/metrics", [this](const auto&, auto& out) {
      out.set_content(handlers_.metrics(), "text/plain; version=0.0.4");
    });
  }
  ~Server() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  Status Listen(const std::string& listen) {
    size_t colon = listen.rfind(':');
    int port = -1;
    if (colon != std::string::npos) {
      std::from_chars(listen.data() + colon + 1, listen.data() + listen.size(), port);
    }
    if (port < 0 || port > 65535) {
      return FailStatus(Code::kInvalidArgument, "web.listen: '{}' is not host:port", listen);
    }
    std::string host = listen.substr(0, colon);
    if (port == 0) {
      port = server_.bind_to_any_port(host);
    } else if (!server_.bind_to_port(host, port)) {
      port = -1;
    }
    if (port <= 0) {
      return FailStatus(Code::kUnavailable, "web.listen: cannot bind {} (in use?)", listen);
    }
    address_ = fmt::format("{}:{}", host, port);
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    return OkStatus();
  }

  std::string address() const override { return address_; }

 private:
  static void Answer(const Status& status, httplib::Response& out) {
    out.status = status.ok() ? 200 : 503;
    out.set_content(status.ok() ? "ok\n" : status.ToString() + "\n", "text/plain");
  }

  HttpHandlers handlers_;
  httplib::Server server_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Start(std::string listen, HttpHandlers handlers) {
  auto server = std::make_unique<Server>(std::move(handlers));
  REPRISE_TRY(server->Listen(listen));
  return server;
}

}  // namespace reprise::web
