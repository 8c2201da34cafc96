// Precompiled for the adapters that speak gRPC (server/rpc, tools/cli): std.h and gRPC.
//
// Files must not rely on it; see std.h.
#pragma once

#include "cmake/pch/std.h"

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>
