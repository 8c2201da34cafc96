// HttpServer: /healthz, /readyz and /metrics for probes and Prometheus.
//
// /healthz is 200 while the process can answer and its store has not failed; /readyz is 200 once
// recovery is over and the daemon accepts work. Anything else is 404. Requests are bounded in size.
//
// Thread rule: the callbacks are called on the server's own threads and may block briefly. Start and
// destruction from one thread.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "reprise/status.h"

namespace reprise::web {

struct HttpHandlers {
  std::function<Status()> health;
  std::function<Status()> ready;
  std::function<std::string()> metrics;
};

class HttpServer {
 public:
  // `listen` is "host:port"; port 0 picks one.
  static Result<std::unique_ptr<HttpServer>> Start(std::string listen, HttpHandlers handlers);
  virtual ~HttpServer() = default;
  virtual std::string address() const = 0;
};

}  // namespace reprise::web
