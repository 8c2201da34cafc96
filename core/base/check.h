// CHECK macros for programmer errors, and helpers that hand a failed Status upwards.
//
// REPRISE_CHECK is on in release builds: an invariant that does not hold stops the process with
// file, line and the broken expression. The world (disk, network, peers, users) never trips a CHECK:
// that is what Status is for.
#pragma once

#include <string_view>

#include "reprise/status.h"

namespace reprise {

// Prints the failed expression with its place to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* expression,
                              std::string_view detail = {});

}  // namespace reprise

#define REPRISE_CHECK(condition, ...) \
  (__builtin_expect(!!(condition), 1) \
       ? (void)0                      \
       : ::reprise::CheckFailed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__))

#define REPRISE_CONCAT_INNER(a, b) a##b
#define REPRISE_CONCAT(a, b) REPRISE_CONCAT_INNER(a, b)

// In a function that returns Status: hands a failure up.
#define REPRISE_RETURN_IF_ERROR(expression)                                      \
  do {                                                                           \
    if (::reprise::Status _status = (expression); !_status.ok()) return _status; \
  } while (false)

// In a function that returns Result<T>: hands a failed Status up.
#define REPRISE_TRY(expression)                                  \
  do {                                                           \
    if (::reprise::Status _status = (expression); !_status.ok()) \
      return ::reprise::Error(std::move(_status));               \
  } while (false)

// In a function that returns Result<T>: `REPRISE_ASSIGN(auto x, Compute());` unwraps or hands up.
#define REPRISE_ASSIGN(target, expression) \
  REPRISE_ASSIGN_INNER(REPRISE_CONCAT(_result_, __LINE__), target, expression, return)
// The same for functions that return Status.
#define REPRISE_ASSIGN_STATUS(target, expression) \
  REPRISE_ASSIGN_STATUS_INNER(REPRISE_CONCAT(_result_, __LINE__), target, expression, return)
// Coroutine forms: hand up with co_return.
#define REPRISE_CO_TRY(expression)                               \
  do {                                                           \
    if (::reprise::Status _status = (expression); !_status.ok()) \
      co_return ::reprise::Error(std::move(_status));            \
  } while (false)
#define REPRISE_CO_RETURN_IF_ERROR(expression)                                      \
  do {                                                                              \
    if (::reprise::Status _status = (expression); !_status.ok()) co_return _status; \
  } while (false)
#define REPRISE_CO_ASSIGN(target, expression) \
  REPRISE_ASSIGN_INNER(REPRISE_CONCAT(_result_, __LINE__), target, expression, co_return)
#define REPRISE_CO_ASSIGN_STATUS(target, expression) \
  REPRISE_ASSIGN_STATUS_INNER(REPRISE_CONCAT(_result_, __LINE__), target, expression, co_return)

#define REPRISE_ASSIGN_INNER(result, target, expression, how)               \
  auto result = (expression);                                               \
  if (!result.has_value()) how ::reprise::Error(std::move(result).error()); \
  target = std::move(*result)
#define REPRISE_ASSIGN_STATUS_INNER(result, target, expression, how)         \
  auto result = (expression);                                                \
  if (!result.has_value()) how ::reprise::Status(std::move(result).error()); \
  target = std::move(*result)
