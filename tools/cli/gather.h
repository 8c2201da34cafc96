// Gather: puts the pieces of a checkpoint together again as whole tensors in .safetensors files.
//
// checkpoint.safetensors holds every global and replicated tensor, whole, whatever world saved it;
// rank-NNNNN.safetensors holds what belongs to one rank (auxiliary items as U8). Both are written
// under temporary names, flushed, and renamed: a directory never holds a file that is half done.
// Memory does not grow with the checkpoint: bytes go from the chunk they came in to their place.
//
// Thread rule: one thread. Blocking on file writes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/format/layout.h"
#include "core/format/safetensors.h"
#include "reprise/status.h"

namespace reprise::cli {

// Where the bytes of a piece lie in the whole tensor: runs in the piece's own order.
struct PieceRun {
  uint64_t piece_offset = 0;
  uint64_t tensor_offset = 0;
  uint64_t bytes = 0;
  bool operator==(const PieceRun&) const = default;
};
std::vector<PieceRun> RunsOf(const format::Piece& piece);

// One file being written.
class TensorFile {
 public:
  // `items` need name, dtype and shape; offsets are assigned in the given order.
  // ALREADY_EXISTS: the final name is taken.
  static Result<std::unique_ptr<TensorFile>> Create(const std::string& path,
                                                    std::vector<format::SafetensorsItem> items,
                                                    std::map<std::string, std::string> metadata);
  ~TensorFile();  // removes the temporary file unless finished
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  bool Has(const std::string& name) const { return begins_.contains(name); }
  // Writes bytes of tensor `name` from `offset` on.
  Status Write(const std::string& name, uint64_t offset, ByteView bytes);
  // Flushes and gives the file its final name.
  Status Finish();
  const std::string& path() const { return path_; }

 private:
  TensorFile() = default;
  int fd_ = -1;
  std::string path_;
  std::map<std::string, uint64_t> begins_;  // absolute file offsets
};

// Takes a shard's chunks in order and writes each piece's bytes to its file.
class ShardScatter {
 public:
  // Pieces whose name `file` returns null for are left out.
  ShardScatter(const format::Layout& layout,
               const std::function<TensorFile*(const format::Piece&)>& file_of);
  // Bytes [offset, offset + bytes.size()) of the shard; calls come in ascending order.
  Status Write(uint64_t offset, ByteView bytes);

 private:
  struct Target {
    const format::Piece* piece;
    TensorFile* file;
    uint64_t begin;
    uint64_t end;
    std::vector<PieceRun> runs;  // made when the first byte arrives
    size_t cursor = 0;
  };
  Status WritePiece(Target& target, uint64_t offset, ByteView bytes);
  std::vector<Target> targets_;  // by position
  size_t first_ = 0;             // the first target that is not complete
};

}  // namespace reprise::cli
