// ClientTest: a client of one rank against a FakeDaemon, and a training state to save and restore.
//
// Thread rule: the test's thread; the fake daemon has its own.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "reprise/client.h"
#include "tests/unit/client/fake_daemon.h"

namespace reprise::client::test {

// Named tensors in host memory, one whole tensor of bytes each.
class State {
 public:
  State(uint64_t seed, const std::vector<uint64_t>& sizes) {
    Rng rng(seed);
    for (size_t i = 0; i < sizes.size(); ++i) {
      Tensor& tensor = tensors_.emplace_back();
      tensor.name = "layer." + std::to_string(i);
      tensor.shape = {sizes[i]};
      tensor.boxes = {0, sizes[i]};
      tensor.memory.resize(sizes[i]);
      for (uint8_t& byte : tensor.memory) byte = static_cast<uint8_t>(rng.Next());
    }
  }
  std::vector<PieceView> Pieces(bool is_volatile = false) {
    std::vector<PieceView> pieces;
    for (Tensor& tensor : tensors_) {
      pieces.push_back({.name = tensor.name,
                        .dtype = Dtype::kU8,
                        .scope = Scope::kGlobal,
                        .is_volatile = is_volatile,
                        .global_shape = tensor.shape,
                        .boxes = tensor.boxes,
                        .box_count = 1,
                        .data = tensor.memory.data(),
                        .data_bytes = tensor.memory.size()});
    }
    return pieces;
  }
  Bytes& memory(size_t i) { return tensors_[i].memory; }
  void Clear() {
    for (Tensor& tensor : tensors_) std::ranges::fill(tensor.memory, 0);
  }
  bool Equals(State& other) {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (tensors_[i].memory != other.tensors_[i].memory) return false;
    }
    return true;
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    std::vector<uint64_t> boxes;
    Bytes memory;
  };
  std::vector<Tensor> tensors_;
};

class ClientTest : public testing::Test {
 protected:
  ClientOptions Options() {
    ClientOptions options;
    options.uri = "reprise://tenant/job";
    options.socket = daemon_.socket_path();
    options.launcher = "test";
    options.stall_budget_s = stall_budget_s_;
    options.connect_timeout_s = 10;
    return options;
  }
  void Open() {
    auto client = Client::Open(Options());
    ASSERT_TRUE(client.has_value()) << client.error();
    client_ = std::move(*client);
  }
  void OpenAndRegister() {
    Open();
    auto run = client_->Register(10);
    ASSERT_TRUE(run.has_value()) << run.error();
  }

  double stall_budget_s_ = 5;
  FakeDaemon daemon_;
  std::unique_ptr<Client> client_;
};

}  // namespace reprise::client::test
