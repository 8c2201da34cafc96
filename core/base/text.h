// Texts that cross process borders: cut at a whole character, and UTF-8 where the other side insists.
//
// Reasons, hosts and launchers come from trainers and may be any bytes. Inside they are carried as
// they are; who cuts one uses CutText, and the control API, whose receiver drops a whole message for
// one bad byte, sends Utf8Text.
//
// Thread rule: pure functions.
#pragma once

#include <string>
#include <string_view>

namespace reprise {

// True when `text` is well-formed UTF-8 (no overlong forms, no surrogates).
bool IsUtf8(std::string_view text);

// The longest prefix of at most `size_max` bytes that does not cut a UTF-8 character.
std::string_view CutText(std::string_view text, size_t size_max);

// `text` when it is UTF-8; else with '?' in place of every byte that is not ASCII.
std::string Utf8Text(std::string text);

}  // namespace reprise
