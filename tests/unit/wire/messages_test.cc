#include "core/wire/messages.h"

#include <gtest/gtest.h>

#include "tests/unit/wire/sample_messages.h"

namespace reprise::wire {
namespace {

TEST(Messages, EveryMessageWithRandomContentSurvivesEncodingAndDecoding) {
  Rng rng(1);
  ForEachMessage([&]<typename Message>(std::string_view name) {
    for (int round = 0; round < 200; ++round) {
      Message message = RandomMessage<Message>(rng);
      Result<Message> decoded = Decode<Message>(Encode(message));
      ASSERT_TRUE(decoded.has_value()) << name << ": " << decoded.error();
      EXPECT_EQ(*decoded, message) << name;
    }
  });
}

TEST(Messages, EveryMessageIsRefusedWhenCutShortAtAnyByte) {
  Rng rng(2);
  ForEachMessage([&]<typename Message>(std::string_view name) {
    for (int round = 0; round < 10; ++round) {
      Bytes body = Encode(RandomMessage<Message>(rng));
      for (size_t size = 0; size < body.size(); ++size) {
        Result<Message> decoded = Decode<Message>(ByteView(body).first(size));
        ASSERT_FALSE(decoded.has_value()) << name << " cut to " << size << " of " << body.size();
        EXPECT_EQ(decoded.error().code(), Code::kInvalidArgument);
      }
    }
  });
}

TEST(Messages, EveryMessageIsRefusedWithOneByteTooMany) {
  Rng rng(3);
  ForEachMessage([&]<typename Message>(std::string_view name) {
    Bytes body = Encode(RandomMessage<Message>(rng));
    body.push_back(0);
    Result<Message> decoded = Decode<Message>(body);
    ASSERT_FALSE(decoded.has_value()) << name;
    EXPECT_NE(decoded.error().message().find("too long"), std::string::npos);
  });
}

TEST(Messages, DamagedBodiesEitherDecodeToSomethingEncodableOrAreRefused) {
  Rng rng(4);
  ForEachMessage([&]<typename Message>(std::string_view name) {
    for (int round = 0; round < 500; ++round) {
      Bytes body = Encode(RandomMessage<Message>(rng));
      if (body.empty()) continue;
      for (uint64_t flips = 1 + rng.Below(4); flips > 0; --flips) {
        body[rng.Below(body.size())] ^= static_cast<uint8_t>(1u << rng.Below(8));
      }
      Result<Message> decoded = Decode<Message>(body);
      if (decoded.has_value()) EXPECT_EQ(Encode(*decoded), body) << name;
    }
  });
}

TEST(Messages, FreeTextIsShortenedAtAWholeCharacter) {
  ErrorBody error{Code::kInternal, std::string(limits::kErrorMessageMax - 1, 'x') + "\u00e9tat"};
  Result<ErrorBody> decoded = Decode<ErrorBody>(Encode(error));
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->message, std::string(limits::kErrorMessageMax - 1, 'x'));
}

TEST(Messages, NamesOverTheLimitAreRefusedByTheReceiver) {
  Register request;
  request.job = std::string(limits::kNameLengthMax, 'j');
  EXPECT_TRUE(Decode<Register>(Encode(request)).has_value());
  request.job += 'j';
  EXPECT_FALSE(Decode<Register>(Encode(request)).has_value());
}

TEST(Messages, AClaimedCountBeyondTheBodyAllocatesNothing) {
  ByteWriter writer;
  writer.U32(0xFFFFFFFF);
  EXPECT_FALSE(Decode<PutSeal>(writer.view()).has_value());
  EXPECT_FALSE(Decode<RingFree>(writer.view()).has_value());
  EXPECT_FALSE(Decode<BlobBody>(writer.view()).has_value());
}

TEST(Messages, ListsOverTheirLimitAreRefused) {
  RingFree free;
  free.ring_indices.resize(limits::kRingChunksMax + 1);
  EXPECT_FALSE(Decode<RingFree>(Encode(free)).has_value());
  Registered registered;
  registered.skipped.resize(format::kSkippedMax + 1);
  EXPECT_FALSE(Decode<Registered>(Encode(registered)).has_value());
}

TEST(Messages, AnErrorThatSaysOkAndCodesWithoutANameAreRefused) {
  for (uint8_t code : {0, 2, 19, 255}) {
    ByteWriter writer;
    writer.U8(code);
    writer.String("odd");
    EXPECT_FALSE(Decode<ErrorBody>(writer.view()).has_value()) << int{code};
  }
}

TEST(Messages, EverySourceHasAName) {
  EXPECT_EQ(SourceName(Source::kNvme), "nvme");
  for (int value = 0; value <= 5; ++value) EXPECT_NE(SourceName(static_cast<Source>(value)), "?");
}

}  // namespace
}  // namespace reprise::wire
