#include "core/base/text.h"

#include <gtest/gtest.h>

namespace reprise {
namespace {

TEST(Text, IsCutAtAWholeCharacter) {
  EXPECT_EQ(CutText("abc", 3), "abc");
  EXPECT_EQ(CutText("abcd", 3), "abc");
  EXPECT_EQ(CutText("ab\u00e9", 3), "ab");
  EXPECT_EQ(CutText("ab\u00e9", 4), "ab\u00e9");
  EXPECT_EQ(CutText("\u6f22\u5b57", 5), "\u6f22");
  EXPECT_EQ(CutText("\x80\x80\x80", 2), "");
  EXPECT_EQ(CutText("abc", 0), "");
}

TEST(Text, OverlongFormsSurrogatesAndCutCharactersAreNoUtf8) {
  EXPECT_TRUE(IsUtf8(""));
  EXPECT_TRUE(IsUtf8("a\u00e9\u6f22\U0001f600"));
  for (std::string_view bad : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80",
                               "\xf4\x90\x80\x80", "\xff", "caf\xe9"}) {
    EXPECT_FALSE(IsUtf8(bad));
  }
}

TEST(Text, WhatIsNotUtf8BecomesSo) {
  EXPECT_EQ(Utf8Text("n\u00e9"), "n\u00e9");
  EXPECT_EQ(Utf8Text("caf\xe9 \u00e9"), "caf? ??");
  EXPECT_TRUE(IsUtf8(Utf8Text(std::string(300, '\xfe'))));
}

}  // namespace
}  // namespace reprise
