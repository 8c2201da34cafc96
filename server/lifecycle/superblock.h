// SUPER: the file that says whose directory this is, and its lock.
//
// Four copies of 4 KiB, written in two pairs with a flush after each, so that at every moment at
// least two intact copies agree. Reading takes the highest incarnation on which two copies agree;
// writing raises the incarnation and repairs whatever was damaged. A single intact copy means that
// the directory's making was cut off before it held anything.
//
// Thread rule: the Io's loop. Format: docs/format.md, "Superblock".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/format/journal.h"
#include "core/io/io.h"
#include "reprise/status.h"

namespace reprise::lifecycle {

struct SuperblockImage {
  std::optional<format::Superblock> agreed;  // none: the directory was never finished
  std::vector<std::string> repairs;          // copies that were damaged or older
};

class SuperblockFile {
 public:
  // Opens (and, with `create`, makes) `directory`/SUPER and locks it until Close.
  // FAILED_PRECONDITION: another daemon serves the directory. NOT_FOUND: nothing there.
  static Task<Result<SuperblockFile>> Open(Io& io, std::string directory, bool create);

  // DATA_LOSS: copies are intact but no two agree. UNIMPLEMENTED: a newer format.
  Task<Result<SuperblockImage>> Read();
  // Writes all four copies; they are durable with their name on OK. After a failure: the old or the
  // new superblock, whichever two copies agree on.
  Task<Status> Write(format::Superblock superblock);
  Task<Status> Close();

 private:
  SuperblockFile(Io& io, std::string directory, FileId file)
      : io_(&io), directory_(std::move(directory)), file_(file) {}
  Io* io_;
  std::string directory_;
  FileId file_;
};

}  // namespace reprise::lifecycle
