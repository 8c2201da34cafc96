#include "tools/cli/gather.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::cli {
namespace {

Status FileError(std::string_view operation, const std::string& path) {
  Code code = errno == ENOSPC || errno == EDQUOT ? Code::kResourceExhausted : Code::kUnavailable;
  return FailStatus(code, "{} {}: {}", operation, path, std::strerror(errno));
}

// Runs of one box: the trailing axes that the box spans fully are contiguous in the tensor.
void AddBoxRuns(const Box& box, const std::vector<uint64_t>& shape, uint64_t element_bytes,
                uint64_t& piece_offset, std::vector<PieceRun>& runs) {
  size_t axes = shape.size();
  std::vector<uint64_t> strides(axes, element_bytes);
  for (size_t i = axes; i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  size_t outer = axes;  // axes [outer, axes) make one run
  uint64_t run_bytes = element_bytes;
  while (outer > 0) {
    --outer;
    run_bytes *= box.extent[outer];
    if (box.extent[outer] != shape[outer]) break;
  }
  if (format::ElementsOf(box) == 0) return;
  std::vector<uint64_t> index(outer, 0);
  while (true) {
    uint64_t tensor_offset = 0;
    for (size_t i = 0; i < axes; ++i) {
      tensor_offset += (box.offset[i] + (i < outer ? index[i] : 0)) * strides[i];
    }
    runs.push_back({piece_offset, tensor_offset, run_bytes});
    piece_offset += run_bytes;
    size_t axis = outer;
    while (axis > 0 && ++index[axis - 1] == box.extent[axis - 1]) index[--axis] = 0;
    if (axis == 0) return;
  }
}

}  // namespace

std::vector<PieceRun> RunsOf(const format::Piece& piece) {
  uint64_t element_bytes = DtypeBytes(piece.dtype);
  std::vector<PieceRun> runs;
  if (piece.kind == format::PieceKind::kFlat) {
    uint64_t bytes = (piece.flat_end - piece.flat_begin) * element_bytes;
    if (bytes > 0) runs.push_back({0, piece.flat_begin * element_bytes, bytes});
    return runs;
  }
  uint64_t piece_offset = 0;
  for (const Box& box : piece.boxes) {
    AddBoxRuns(box, piece.global_shape, element_bytes, piece_offset, runs);
  }
  return runs;
}

Result<std::unique_ptr<TensorFile>> TensorFile::Create(
    const std::string& path, std::vector<format::SafetensorsItem> items,
    std::map<std::string, std::string> metadata) {
  if (std::filesystem::exists(path)) {
    return Fail(Code::kAlreadyExists, "{} exists: choose an empty directory", path);
  }
  format::SafetensorsHeader header{std::move(items), std::move(metadata)};
  uint64_t end = 0;
  for (format::SafetensorsItem& item : header.items) {
    item.begin = end;
    end += format::ElementsOf(item.shape) * DtypeBytes(item.dtype);
    item.end = end;
  }
  REPRISE_ASSIGN(Bytes encoded, format::EncodeSafetensorsHeader(header));
  auto file = std::unique_ptr<TensorFile>(new TensorFile());
  file->path_ = path;
  std::string temporary = path + ".partial";
  file->fd_ = ::open(temporary.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (file->fd_ < 0) return Error(FileError("create", temporary));
  if (::posix_fallocate(file->fd_, 0, static_cast<off_t>(encoded.size() + end)) == ENOSPC) {
    errno = ENOSPC;
    return Error(FileError("reserve space for", path));
  }
  for (const format::SafetensorsItem& item : header.items) {
    file->begins_[item.name] = encoded.size() + item.begin;
  }
  if (::pwrite(file->fd_, encoded.data(), encoded.size(), 0) !=
      static_cast<ssize_t>(encoded.size())) {
    return Error(FileError("write", temporary));
  }
  return file;
}

TensorFile::~TensorFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink((path_ + ".partial").c_str());
}

Status TensorFile::Write(const std::string& name, uint64_t offset, ByteView bytes) {
  uint64_t position = begins_.at(name) + offset;
  while (!bytes.empty()) {
    ssize_t moved = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(position));
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return FileError("write", path_);
    bytes = bytes.subspan(static_cast<size_t>(moved));
    position += static_cast<uint64_t>(moved);
  }
  return OkStatus();
}

Status TensorFile::Finish() {
  std::string temporary = path_ + ".partial";
  if (::fsync(fd_) != 0) return FileError("flush", temporary);
  if (::rename(temporary.c_str(), path_.c_str()) != 0) return FileError("rename", temporary);
  ::close(std::exchange(fd_, -1));
  std::string directory = std::filesystem::path(path_).parent_path();
  int parent = ::open(directory.empty() ? "." : directory.c_str(), O_RDONLY | O_DIRECTORY);
  if (parent < 0 || ::fsync(parent) != 0) return FileError("flush directory of", path_);
  ::close(parent);
  return OkStatus();
}

ShardScatter::ShardScatter(const format::Layout& layout,
                           const std::function<TensorFile*(const format::Piece&)>& file_of) {
  for (const format::Piece& piece : layout.pieces) {
    TensorFile* file = file_of(piece);
    if (file == nullptr) continue;
    targets_.push_back(
        {&piece, file, piece.position, piece.position + format::BytesOf(piece), {}, 0});
  }
  std::ranges::sort(targets_, {}, &Target::begin);
}

Status ShardScatter::Write(uint64_t offset, ByteView bytes) {
  uint64_t end = offset + bytes.size();
  while (first_ < targets_.size() && targets_[first_].end <= offset) {
    targets_[first_++].runs = {};
  }
  for (size_t i = first_; i < targets_.size() && targets_[i].begin < end; ++i) {
    Target& target = targets_[i];
    uint64_t from = std::max(offset, target.begin);
    uint64_t to = std::min(end, target.end);
    if (from >= to) continue;
    REPRISE_RETURN_IF_ERROR(
        WritePiece(target, from - target.begin, bytes.subspan(from - offset, to - from)));
  }
  return OkStatus();
}

Status ShardScatter::WritePiece(Target& target, uint64_t offset, ByteView bytes) {
  if (target.runs.empty()) target.runs = RunsOf(*target.piece);
  while (!bytes.empty()) {
    const PieceRun& run = target.runs[target.cursor];
    if (run.piece_offset + run.bytes <= offset) {
      ++target.cursor;
      continue;
    }
    uint64_t skip = offset - run.piece_offset;
    uint64_t size = std::min<uint64_t>(run.bytes - skip, bytes.size());
    REPRISE_RETURN_IF_ERROR(
        target.file->Write(target.piece->name, run.tensor_offset + skip, bytes.first(size)));
    bytes = bytes.subspan(size);
    offset += size;
  }
  return OkStatus();
}

}  // namespace reprise::cli
