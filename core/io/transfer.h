// Whole-transfer helpers over Io: loop over short results and turn errno into a Status.
//
// ReadFully and WriteFully return OK only when every byte moved. End of file or of stream before
// that is OUT_OF_RANGE for files and UNAVAILABLE for sockets. After a failed WriteFully the range's
// content is undefined. ENOSPC becomes RESOURCE_EXHAUSTED, ETIME becomes DEADLINE_EXCEEDED.
//
// Thread rule: the Io's loop.
#pragma once

#include <optional>
#include <string_view>

#include "core/io/io.h"

namespace reprise {

// The Status for a failed kernel call: "<operation>: <errno text>".
Status StatusFromErrno(int errno_value, std::string_view operation);

Task<Status> ReadFully(Io& io, FileId file, MutableByteView buffer, uint64_t offset);
Task<Status> WriteFully(Io& io, FileId file, ByteView data, uint64_t offset);
Task<Status> FlushFile(Io& io, FileId file);
Task<Status> RecvFully(Io& io, SocketId socket, MutableByteView buffer,
                       std::optional<TimePoint> deadline = {});
Task<Status> SendFully(Io& io, SocketId socket, ByteView data,
                       std::optional<TimePoint> deadline = {});

}  // namespace reprise
