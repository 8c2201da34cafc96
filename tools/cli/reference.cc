#include "tools/cli/reference.h"

#include <charconv>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::cli {
namespace {

Result<uint64_t> ParseNumber(std::string_view text, std::string_view what) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  return Fail(Code::kInvalidArgument,
              "{} '{}' is not a number: write JOB@STEP, JOB@STEP~EPOCH or "
              "JOB@latest",
              what, text);
}

}  // namespace

std::string Reference::ToString() const {
  std::string text = tenant + "/" + job;
  if (step.has_value()) text += fmt::format("@{}", *step);
  if (epoch.has_value()) text += fmt::format("~{}", *epoch);
  return text;
}

Result<Reference> ParseReference(std::string_view text) {
  Reference reference;
  std::string_view name = text.substr(0, text.find('@'));
  if (name.size() < text.size()) {
    std::string_view selector = text.substr(name.size() + 1);
    if (selector != "latest") {
      std::string_view step = selector.substr(0, selector.find('~'));
      REPRISE_ASSIGN(reference.step, ParseNumber(step, "step"));
      if (step.size() < selector.size()) {
        REPRISE_ASSIGN(reference.epoch, ParseNumber(selector.substr(step.size() + 1), "epoch"));
      }
    }
  }
  size_t slash = name.find('/');
  if (slash != std::string_view::npos) {
    reference.tenant = name.substr(0, slash);
    name = name.substr(slash + 1);
  }
  reference.job = name;
  if (!IsValidName(reference.tenant) || !IsValidName(reference.job)) {
    return Fail(Code::kInvalidArgument,
                "'{}' names no job: write [TENANT/]JOB with letters, digits, '.', '_' and '-'",
                text);
  }
  return reference;
}

}  // namespace reprise::cli
