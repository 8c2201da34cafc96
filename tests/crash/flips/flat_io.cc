#include "tests/crash/flips/flat_io.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "core/base/check.h"

namespace reprise::crash {

void FlatIo::Mark() {
  marked_ = true;
  reshaped_ = false;
  at_mark_ = files_;
  undo_.clear();
}

void FlatIo::Rollback() {
  open_.clear();
  if (std::exchange(reshaped_, false)) {
    files_ = at_mark_;
    undo_.clear();
    return;
  }
  while (!undo_.empty()) {
    Undo& last = undo_.back();
    std::ranges::copy(last.before, files_.at(last.path).begin() + last.offset);
    undo_.pop_back();
  }
}

void FlatIo::Resize(Bytes& bytes, uint64_t size) {
  if (bytes.size() == size) return;
  reshaped_ = true;
  bytes.resize(size);
}

void FlatIo::Write(const std::string& path, Bytes& bytes, uint64_t offset, ByteView data) {
  if (offset + data.size() > bytes.size()) Resize(bytes, offset + data.size());
  auto place = bytes.begin() + static_cast<ptrdiff_t>(offset);
  if (marked_ && !reshaped_) {
    undo_.push_back({path, offset, Bytes(place, place + static_cast<ptrdiff_t>(data.size()))});
  }
  std::ranges::copy(data, place);
}

Task<Result<FileId>> FlatIo::Open(std::string path, OpenOptions options) {
  if (!files_.contains(path)) {
    if (!options.create) co_return Error(Code::kNotFound, "open " + path);
    files_[path];
    reshaped_ = true;
  }
  open_.push_back(std::move(path));
  co_return FileId{static_cast<int>(open_.size()) - 1};
}

Task<Status> FlatIo::Close(FileId file) {
  open_.at(file.value).clear();
  co_return OkStatus();
}

Task<Result<uint64_t>> FlatIo::Size(FileId file) {
  co_return files_.at(open_.at(file.value)).size();
}

Task<Status> FlatIo::Allocate(FileId file, uint64_t offset, uint64_t length) {
  Bytes& bytes = files_.at(open_.at(file.value));
  Resize(bytes, std::max<uint64_t>(bytes.size(), offset + length));
  co_return OkStatus();
}

Task<Status> FlatIo::Truncate(FileId file, uint64_t size) {
  Resize(files_.at(open_.at(file.value)), size);
  co_return OkStatus();
}

Task<Result<std::vector<std::string>>> FlatIo::List(std::string path) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : files_) {
    bool inside = name.starts_with(path + "/") && name.find('/', path.size() + 1) == name.npos;
    if (inside) names.push_back(name.substr(path.size() + 1));
  }
  co_return names;
}

Task<Status> FlatIo::Remove(std::string path) {
  reshaped_ = true;
  co_return files_.erase(path) == 1 ? OkStatus() : Status(Code::kNotFound, "unlink " + path);
}

void FlatIo::Submit(IoRequest& request) {
  REPRISE_CHECK(request.op == IoOp::kRead || request.op == IoOp::kWrite ||
                request.op == IoOp::kFlush);
  const std::string& path = open_.at(request.handle);
  Bytes& bytes = files_.at(path);
  request.result = 0;
  if (request.op == IoOp::kWrite) {
    Write(path, bytes, request.offset, {request.data, request.size});
    request.result = static_cast<int64_t>(request.size);
  } else if (request.op == IoOp::kRead && request.offset < bytes.size()) {
    uint64_t count = std::min<uint64_t>(request.size, bytes.size() - request.offset);
    std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(request.offset), count, request.data);
    request.result = static_cast<int64_t>(count);
  }
  loop_.Schedule(request.waiter);
}

}  // namespace reprise::crash
