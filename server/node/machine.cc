#include "server/node/machine.h"

namespace reprise::node {
namespace {

class LocalMachine final : public Machine {
 public:
  Result<SlabMapping> Map(const std::string& path, uint64_t bytes_min) override {
    return SlabMapping::Map(path, bytes_min);
  }
  Result<std::unique_ptr<PidWatch>> WatchProcesses(Loop& loop) override {
    return PidWatch::Create(loop);
  }
};

}  // namespace

Machine& Machine::Local() {
  static LocalMachine local;
  return local;
}

}  // namespace reprise::node
