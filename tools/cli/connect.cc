#include <cstdlib>
#include <filesystem>

#include "core/base/check.h"
#include "tools/cli/commands.h"

namespace reprise::cli {

Result<Connection> Connect(const GlobalOptions& options) {
  Connection connection;
  std::string address = options.store;
  if (!options.directory.empty()) {
    // Starts the directory's daemon when none runs, and keeps it while this command lives.
    std::filesystem::path directory = std::filesystem::absolute(options.directory);
    if (!std::filesystem::is_directory(directory)) {
      return Error(Code::kNotFound, "--dir " + options.directory + ": no such directory");
    }
    ClientOptions client;
    client.uri = "file://" + directory.lexically_normal().string();
    client.connect_timeout_s = options.timeout_s;
    REPRISE_ASSIGN(connection.embedded, Client::Open(client));
    address = "unix:" + (directory / ".reprise" / "control.sock").string();
  }
  if (address.empty()) {
    const char* environment = std::getenv("REPRISE_STORE");
    address = environment == nullptr ? "127.0.0.1:7700" : environment;
  }
  connection.control = std::make_unique<Control>(address, options.timeout());
  return connection;
}

}  // namespace reprise::cli
