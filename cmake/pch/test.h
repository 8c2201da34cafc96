// Precompiled for tests: std.h and GoogleTest.
#pragma once

#include "cmake/pch/std.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
