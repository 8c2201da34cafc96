#include "server/lifecycle/rows.h"

#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"

namespace reprise::lifecycle {
namespace {

// 2: the row of an attempt that is over says whether it was committed.
constexpr uint8_t kRowVersion = 2;
constexpr size_t kReasonBytesMax = limits::kErrorMessageMax;

void AppendBigEndian(std::string& key, uint64_t value, int bytes) {
  for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) {
    key.push_back(static_cast<char>(value >> shift & 0xff));
  }
}

std::string KeyWith(char kind, ByteView identity) {
  std::string key(1, kind);
  key.append(TextOf(identity));
  return key;
}

std::string KeyOfCheckpoint(char kind, const Id& job, const CheckpointKey& checkpoint) {
  std::string key = KeyWith(kind, job.bytes);
  AppendBigEndian(key, checkpoint.epoch, 8);
  AppendBigEndian(key, checkpoint.step, 8);
  return key;
}

struct KeyMaker {
  std::string operator()(const format::JobEntry& row) const { return KeyWith('j', row.job.bytes); }
  std::string operator()(const EpochRow& row) const {
    std::string key = KeyWith('e', row.grant.job.bytes);
    AppendBigEndian(key, row.grant.epoch, 8);
    return key;
  }
  std::string operator()(const CheckpointRow& row) const {
    return KeyOfCheckpoint('c', row.commit.job, row.commit.key);
  }
  std::string operator()(const format::PreparedEntry& row) const {
    std::string key = KeyWith('s', row.identity.attempt.bytes);
    AppendBigEndian(key, row.identity.rank, 4);
    return key;
  }
  std::string operator()(const format::LayoutEntry& row) const {
    return KeyWith('l', row.layout.bytes);
  }
  std::string operator()(const OverRow& row) const {
    return KeyOfCheckpoint('x', row.end.job, row.end.key);
  }
};

struct ValueMaker {
  ByteWriter& writer;
  void Entry(format::Entry entry) const { writer.Blob(format::EncodeEntry(entry)); }
  void operator()(const format::JobEntry& row) const { Entry(row); }
  void operator()(const EpochRow& row) const {
    Entry(row.grant);
    writer.U8(row.resume.has_value());
    if (row.resume.has_value()) Entry(*row.resume);
  }
  void operator()(const CheckpointRow& row) const {
    Entry(row.commit);
    writer.U8(row.pinned);
    writer.String(row.pin_reason);
    writer.U8(static_cast<uint8_t>(row.mark));
    writer.String(row.mark_reason);
  }
  void operator()(const format::PreparedEntry& row) const { Entry(row); }
  void operator()(const format::LayoutEntry& row) const { Entry(row); }
  void operator()(const OverRow& row) const {
    Entry(row.end);
    writer.U8(row.committed);
  }
};

// Reads one entry of exactly type T; marks the reader as failed otherwise.
template <typename T>
T GetEntry(ByteReader& reader) {
  ByteView bytes = reader.Blob(limits::kJournalSlotBytes);
  if (!reader.ok()) return {};
  Result<format::Entry> entry = format::DecodeEntry(bytes);
  if (!entry.has_value() || !std::holds_alternative<T>(*entry)) {
    reader.Fail();
    return {};
  }
  return std::get<T>(std::move(*entry));
}

EpochRow GetEpochRow(ByteReader& reader) {
  EpochRow row;
  row.grant = GetEntry<format::EpochEntry>(reader);
  if (reader.U8() != 0) row.resume = GetEntry<format::ResumeEntry>(reader);
  return row;
}

CheckpointRow GetCheckpointRow(ByteReader& reader) {
  CheckpointRow row;
  row.commit = GetEntry<format::CommitEntry>(reader);
  row.pinned = reader.U8() != 0;
  row.pin_reason = reader.String(kReasonBytesMax);
  uint8_t mark = reader.U8();
  if (mark > static_cast<uint8_t>(format::Mark::kRecovered)) reader.Fail();
  row.mark = static_cast<format::Mark>(mark);
  row.mark_reason = reader.String(kReasonBytesMax);
  return row;
}

OverRow GetOverRow(ByteReader& reader, uint8_t version) {
  OverRow row;
  row.end = GetEntry<format::AbortEntry>(reader);
  row.committed = version >= 2 ? reader.U8() != 0 : row.end.reason == "deleted";
  return row;
}

Row GetRow(char kind, uint8_t version, ByteReader& reader) {
  switch (kind) {
    case 'j': return GetEntry<format::JobEntry>(reader);
    case 'e': return GetEpochRow(reader);
    case 'c': return GetCheckpointRow(reader);
    case 's': return GetEntry<format::PreparedEntry>(reader);
    case 'l': return GetEntry<format::LayoutEntry>(reader);
    case 'x': return GetOverRow(reader, version);
    default: reader.Fail(); return {};
  }
}

}  // namespace

std::string KeyOf(const Row& row) { return std::visit(KeyMaker{}, row); }

std::string EncodeRowValue(const Row& row) {
  ByteWriter writer;
  writer.U8(kRowVersion);
  std::visit(ValueMaker{writer}, row);
  return std::string(TextOf(writer.view()));
}

catalog::RowChange PutRow(const Row& row) { return {KeyOf(row), EncodeRowValue(row)}; }
catalog::RowChange RemoveRow(const Row& row) { return {KeyOf(row), std::nullopt}; }

Result<Row> DecodeRow(ByteView key, ByteView value) {
  ByteReader reader(value);
  uint8_t version = reader.U8();
  if (reader.ok() && version > kRowVersion) {
    return Fail(Code::kUnimplemented, "the index holds a row of version {}: use a newer reprised",
                version);
  }
  Row row = GetRow(key.empty() ? '\0' : static_cast<char>(key[0]), version, reader);
  if (!reader.AtEnd() || TextOf(key) != KeyOf(row)) {
    return Fail(Code::kDataLoss, "index row {} does not decode or lies under a foreign key",
                HexOf(key.first(std::min<size_t>(key.size(), 40))));
  }
  return row;
}

}  // namespace reprise::lifecycle
