#include "server/catalog/rocksdb_faults.h"

#include <rocksdb/file_system.h>

#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace reprise::catalog {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

template <typename Work>
IOStatus AtPoint(FaultPoints& faults, DiskOperation operation, Work work) {
  FaultPoints::Point point = faults.Begin(operation);
  if (point.error == ENOSPC) return IOStatus::NoSpace("fault point");
  if (point.error != 0) return IOStatus::IOError("fault point");
  IOStatus status = work();
  faults.End(point);
  return status;
}

class WritableFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WritableFile(std::unique_ptr<rocksdb::FSWritableFile> file, FaultPoints& faults)
      : FSWritableFileOwnerWrapper(std::move(file)), faults_(faults) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kWrite,
                   [&] { return target()->Append(data, options, debug); });
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& info, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kWrite,
                   [&] { return target()->Append(data, options, info, debug); });
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kWrite,
                   [&] { return target()->PositionedAppend(data, offset, options, debug); });
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo& info,
                            IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kWrite,
                   [&] { return target()->PositionedAppend(data, offset, options, info, debug); });
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kTruncate,
                   [&] { return target()->Truncate(size, options, debug); });
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kFlush, [&] { return target()->Sync(options, debug); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kFlush, [&] { return target()->Fsync(options, debug); });
  }
  IOStatus Allocate(uint64_t offset, uint64_t length, const IOOptions& options,
                    IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kAllocate,
                   [&] { return target()->Allocate(offset, length, options, debug); });
  }

 private:
  FaultPoints& faults_;
};

class RandomAccessFile final : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  RandomAccessFile(std::unique_ptr<rocksdb::FSRandomAccessFile> file, FaultPoints& faults)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), faults_(faults) {}
  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* debug) const override {
    return AtPoint(faults_, DiskOperation::kRead,
                   [&] { return target()->Read(offset, n, options, result, scratch, debug); });
  }

 private:
  FaultPoints& faults_;
};

class SequentialFile final : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  SequentialFile(std::unique_ptr<rocksdb::FSSequentialFile> file, FaultPoints& faults)
      : FSSequentialFileOwnerWrapper(std::move(file)), faults_(faults) {}
  IOStatus Read(size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kRead,
                   [&] { return target()->Read(n, options, result, scratch, debug); });
  }

 private:
  FaultPoints& faults_;
};

class Directory final : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(std::unique_ptr<rocksdb::FSDirectory> directory, FaultPoints& faults)
      : FSDirectoryWrapper(std::move(directory)), faults_(faults) {}
  IOStatus Fsync(const IOOptions& options, IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kSyncDirectory,
                   [&] { return FSDirectoryWrapper::Fsync(options, debug); });
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* debug,
                               const rocksdb::DirFsyncOptions& how) override {
    return AtPoint(faults_, DiskOperation::kSyncDirectory,
                   [&] { return FSDirectoryWrapper::FsyncWithDirOptions(options, debug, how); });
  }

 private:
  FaultPoints& faults_;
};

class FileSystem final : public rocksdb::FileSystemWrapper {
 public:
  FileSystem(const std::shared_ptr<rocksdb::FileSystem>& base, FaultPoints& faults)
      : FileSystemWrapper(base), faults_(faults) {}
  const char* Name() const override { return "FaultPoints"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    IOStatus status = AtPoint(faults_, DiskOperation::kCreate, [&] {
      return target()->NewWritableFile(path, options, file, debug);
    });
    if (status.ok()) *file = std::make_unique<WritableFile>(std::move(*file), faults_);
    return status;
  }
  IOStatus NewRandomAccessFile(const std::string& path, const FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file,
                               IODebugContext* debug) override {
    IOStatus status = target()->NewRandomAccessFile(path, options, file, debug);
    if (status.ok()) *file = std::make_unique<RandomAccessFile>(std::move(*file), faults_);
    return status;
  }
  IOStatus NewSequentialFile(const std::string& path, const FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* file,
                             IODebugContext* debug) override {
    IOStatus status = target()->NewSequentialFile(path, options, file, debug);
    if (status.ok()) *file = std::make_unique<SequentialFile>(std::move(*file), faults_);
    return status;
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* directory,
                        IODebugContext* debug) override {
    IOStatus status = target()->NewDirectory(path, options, directory, debug);
    if (status.ok()) *directory = std::make_unique<Directory>(std::move(*directory), faults_);
    return status;
  }
  IOStatus CreateDir(const std::string& path, const IOOptions& options,
                     IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kMakeDirectory,
                   [&] { return target()->CreateDir(path, options, debug); });
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions& options,
                              IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kMakeDirectory,
                   [&] { return target()->CreateDirIfMissing(path, options, debug); });
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kRemove,
                   [&] { return target()->DeleteFile(path, options, debug); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* debug) override {
    return AtPoint(faults_, DiskOperation::kRename,
                   [&] { return target()->RenameFile(from, to, options, debug); });
  }

 private:
  FaultPoints& faults_;
};

}  // namespace

rocksdb::Env* EnvWithFaultPoints(FaultPoints& faults) {
  static rocksdb::Env* const env =
      rocksdb::NewCompositeEnv(std::make_shared<FileSystem>(rocksdb::FileSystem::Default(), faults))
          .release();
  return env;
}

}  // namespace reprise::catalog
