// Precompiled for tests: std.h and GoogleTest.
//
// Files must not rely on it; see std.h.
#pragma once

#include "cmake/pch/std.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
