#include "payload/prompt_hash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/random.h"
#include "payload/request.h"
#include "payload/test_corpus.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fairway::payload {
namespace {

constexpr size_t kBlock = PromptHasher::kBlockBytes;

struct Chains {
  std::vector<uint64_t> hashes;
  std::vector<PromptEnd> ends;
  bool operator==(const Chains&) const = default;
};

Chains ChainsOf(const PromptHasher& hasher, uint64_t root = 1, bool partial = false) {
  Chains chains;
  hasher.AppendChains(root, chains.hashes, chains.ends, partial);
  return chains;
}

RequestScanner Scanned(Api api, const std::vector<std::string_view>& chunks) {
  RequestScanner scanner(api);
  scanner.HashPrompt(true);
  for (const std::string_view chunk : chunks) scanner.Feed(chunk);
  scanner.Finish();
  return scanner;
}

Chains Scan(Api api, const std::vector<std::string_view>& chunks, bool partial = true) {
  const RequestScanner scanner = Scanned(api, chunks);
  EXPECT_TRUE(scanner.ok()) << scanner.error();
  return ChainsOf(*scanner.prompt_hashes(), PrefixRoot(scanner.fields().model, scanner.fields().cache_salt),
                  partial);
}
Chains Scan(Api api, std::string_view body, bool partial = true) {
  return Scan(api, std::vector{body}, partial);
}

std::string Text(size_t size, char seed = 'a') {
  std::string text;
  base::Random random(static_cast<uint64_t>(seed));
  while (text.size() < size) text += static_cast<char>('a' + random.Below(26));
  return text;
}

size_t Common(const Chains& a, const Chains& b) {
  size_t i = 0;
  while (i < a.hashes.size() && i < b.hashes.size() && a.hashes[i] == b.hashes[i]) ++i;
  return i;
}

TEST(BlockKernel, AllSayWhatTheLibrarySays) {
  base::Random random(5);
  std::string text(kBlock * 33 + 7, 0);
  for (char& c : text) c = static_cast<char>(random.Next());
  for (const BlockKernel& kernel : AllBlockKernels()) {
    for (size_t offset = 0; offset < 7; ++offset) {
      std::vector<uint64_t> hashes(33);
      kernel.hash(text.data() + offset, hashes.size(), hashes.data());
      for (size_t i = 0; i < hashes.size(); ++i)
        ASSERT_EQ(hashes[i], XXH3_64bits(text.data() + offset + i * kBlock, kBlock)) << kernel.name;
    }
  }
}

TEST(PromptHasher, CutsDoNotMatter) {
  base::Random random(7);
  const std::string text = Text(5000);
  for (int round = 0; round < 200; ++round) {
    PromptHasher whole, cut;
    for (PromptHasher* hasher : {&whole, &cut}) {
      const std::string_view view = std::string_view(text).substr(0, random.Below(text.size()));
      hasher->Reset();
      hasher->BeginPart(PromptHasher::kMain);
      std::string_view rest = std::string_view(text).substr(0, 4000);
      (void)view;
      while (!rest.empty()) {
        const size_t size = hasher == &whole ? rest.size() : std::min<size_t>(rest.size(), random.Below(700));
        hasher->Add(rest.substr(0, size));
        rest.remove_prefix(size);
      }
      hasher->EndPart();
    }
    ASSERT_EQ(ChainsOf(whole, 1, true), ChainsOf(cut, 1, true));
    ASSERT_EQ(whole.blocks(), 16U);
  }
}

TEST(PromptHasher, RootAndEveryBlockBeforeCount) {
  const std::string text = Text(kBlock * 8);
  const auto chain = [&](std::string_view t, uint64_t root) {
    PromptHasher hasher;
    hasher.BeginPart(PromptHasher::kMain);
    hasher.Add(t);
    hasher.EndPart();
    return ChainsOf(hasher, root);
  };
  const Chains one = chain(text, PrefixRoot("m", ""));
  ASSERT_EQ(one.hashes.size(), 8U);
  EXPECT_EQ(Common(one, chain(text, PrefixRoot("m", "s"))), 0U);
  EXPECT_EQ(Common(one, chain(text, PrefixRoot("n", ""))), 0U);
  EXPECT_NE(PrefixRoot("a", "b"), PrefixRoot("b", "a"));
  for (size_t at = 0; at < text.size(); at += 100) {
    std::string other = text;
    other[at] = 'A';
    EXPECT_EQ(Common(one, chain(other, PrefixRoot("m", ""))), at / kBlock);
  }
  // Blocks in another order are another prompt, from the first that is elsewhere on to the end.
  const Chains swapped = chain(text.substr(kBlock, kBlock) + text.substr(0, kBlock) + text.substr(2 * kBlock),
                               PrefixRoot("m", ""));
  for (size_t i = 0; i < 8; ++i) EXPECT_NE(one.hashes[i], swapped.hashes[i]);
}

TEST(PromptHasher, ALastPartialBlockIsLeftOutUnlessAskedFor) {
  const std::string body = R"({"model":"m","prompt":")" + Text(kBlock * 2 + 10) + "\"}";
  EXPECT_EQ(Scan(Api::kCompletions, body, false).ends, (std::vector<PromptEnd>{{2, false}}));
  EXPECT_EQ(Scan(Api::kCompletions, body, true).ends, (std::vector<PromptEnd>{{3, true}}));
  EXPECT_TRUE(Scan(Api::kCompletions, R"({"prompt":"short"})", false).ends.empty());
}

TEST(PromptHasher, AConversationGoesOnWhereItWas) {
  const std::string first = R"({"role":"system","content":")" + Text(1000, 'a') +
                            R"("},{"role":"user","content":")" + Text(500, 'b') + "\"}";
  const std::string second = first + R"(,{"role":"assistant","content":[{"type":"text","text":")" +
                             Text(600, 'c') + R"("}]},{"role":"user","content":"next"})";
  const auto chat = [](const std::string& messages) {
    return Scan(Api::kChatCompletions, R"({"model":"m","messages":[)" + messages + "]}", false);
  };
  const Chains a = chat(first);
  const Chains b = chat(second);
  EXPECT_EQ(a.hashes.size(), (1000 + 500 + 10) / kBlock);
  EXPECT_EQ(Common(a, b), a.hashes.size());
  EXPECT_GT(b.hashes.size(), a.hashes.size());
}

TEST(PromptHasher, RolesAndCallsOfToolsCount) {
  const auto chat = [](const std::string& first) {
    return Scan(Api::kChatCompletions,
                R"({"messages":[)" + first + R"(,{"role":"user","content":")" + Text(600) + "\"}]}");
  };
  EXPECT_EQ(Common(chat(R"({"role":"user","content":"x"})"), chat(R"({"role":"tool","content":"x"})")), 0U);
  EXPECT_EQ(Common(chat(R"({"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f"}}]})"),
                   chat(R"({"role":"assistant","content":null,"tool_calls":[{"function":{"name":"g"}}]})")),
            0U);
  // Marks that clients move about are no part of the prompt.
  EXPECT_EQ(
      chat(R"({"role":"user","content":[{"type":"text","text":"x","cache_control":{"type":"ephemeral"}}]})"),
      chat(R"({"role":"user","content":"x"})"));
}

TEST(PromptHasher, ToolsAndSystemComeFirstWhereverTheyStand) {
  const std::string tools = R"("tools":[{"name":")" + Text(400, 't') + "\"}]";
  const std::string system = R"("system":")" + Text(300, 's') + "\"";
  const std::string messages = R"("messages":[{"role":"user","content":")" + Text(700, 'm') + "\"}]";
  const auto body = [](std::string a, std::string b, std::string c) {
    return "{" + a + "," + b + "," + c + "}";
  };
  const Chains one = Scan(Api::kMessages, body(tools, system, messages));
  EXPECT_EQ(one.hashes.size(), 2U + 2U + 3U);  // each with its own last block
  EXPECT_EQ(one, Scan(Api::kMessages, body(messages, tools, system)));
  EXPECT_EQ(one, Scan(Api::kMessages, body(system, messages, tools)));
  const std::string others = R"("messages":[{"role":"user","content":"else"}])";
  EXPECT_EQ(Common(one, Scan(Api::kMessages, body(others, system, tools))), 4U);

  const Chains chat = Scan(Api::kChatCompletions, "{" + messages + "," + tools + "}");
  EXPECT_EQ(chat.hashes.size(), 2U + 3U);
  EXPECT_EQ(chat, Scan(Api::kChatCompletions, "{" + tools + "," + messages + "}"));
  EXPECT_EQ(Common(chat, Scan(Api::kChatCompletions, "{" + messages + "}")), 0U);
}

TEST(PromptHasher, AnotherTemplateOrOtherDocumentsAreAnotherPrompt) {
  const std::string messages = R"("messages":[{"role":"user","content":")" + Text(700, 'm') + "\"}]";
  const auto with = [&](const std::string& member) {
    const Chains chains = Scan(Api::kChatCompletions, "{" + member + "," + messages + "}");
    EXPECT_EQ(chains, Scan(Api::kChatCompletions, "{" + messages + "," + member + "}")) << member;
    return chains;
  };
  const Chains plain = Scan(Api::kChatCompletions, "{" + messages + "}");
  for (const std::string key : {"chat_template", "documents"}) {
    const bool list = key == "documents";
    const Chains one = with("\"" + key + "\":" + (list ? R"([{"text":"one"}])" : R"("one")"));
    const Chains two = with("\"" + key + "\":" + (list ? R"([{"text":"two"}])" : R"("two")"));
    EXPECT_EQ(one.hashes.size(), plain.hashes.size() + 1) << key;
    EXPECT_EQ(Common(one, two), 0U) << key;
    EXPECT_EQ(Common(one, plain), 0U) << key;
    EXPECT_EQ(with("\"" + key + "\":null"), plain) << key;
  }
}

// Else who sends such requests teaches that an engine lost what it has.
TEST(PromptHasher, WhatAnEngineDoesNotLookUpHasNoChains) {
  const std::string chat = R"("messages":[{"role":"user","content":")" + Text(700) + "\"}]";
  const std::string text = R"("prompt":")" + Text(700) + "\"";
  std::string tokens = R"("token_ids":[1)";
  for (int i = 0; i < 300; ++i) tokens += ",7";
  tokens += "]";
  const struct {
    Api api;
    std::string prompt;
    std::string member;
    bool chains;
  } cases[] = {
      {Api::kChatCompletions, chat, R"("prompt_logprobs":0)", false},
      {Api::kChatCompletions, chat, R"("prompt_logprobs":-1)", false},
      {Api::kChatCompletions, chat, R"("prompt_logprobs":null)", true},
      {Api::kChatCompletions, chat, R"("echo":true)", true},
      {Api::kCompletions, text, R"("prompt_logprobs":5)", false},
      {Api::kCompletions, text, R"("echo":true)", false},
      {Api::kCompletions, text, R"("echo":false)", true},
      {Api::kCompletions, text, R"("prompt_logprobs":"5")", false},
      {Api::kCompletions, text, R"("echo":"true")", false},
      {Api::kVllmGenerate, tokens, R"("sampling_params":{"prompt_logprobs":1})", false},
      {Api::kVllmGenerate, tokens, R"("sampling_params":{"skip_reading_prefix_cache":true,"max_tokens":1})",
       false},
      {Api::kVllmGenerate, tokens, R"("sampling_params":{"max_tokens":1})", true},
      {Api::kSglangGenerate, "\"text\":\"" + Text(700) + "\"", R"("logprob_start_len":[0])", false},
      {Api::kSglangGenerate, "\"text\":\"" + Text(700) + "\"", R"("logprob_start_len":0)", false},
      {Api::kSglangGenerate, "\"text\":\"" + Text(700) + "\"",
       "\"logprob_start_len\":" + std::string(99, '1'), false},
      {Api::kCompletions, text, "\"prompt_logprobs\":" + std::string(99, '1'), false},
      {Api::kSglangGenerate, "\"text\":\"" + Text(700) + "\"", R"("logprob_start_len":-1)", true},
  };
  for (const auto& it : cases) {
    EXPECT_EQ(!Scan(it.api, "{" + it.member + "," + it.prompt + "}").hashes.empty(), it.chains) << it.member;
    EXPECT_EQ(!Scan(it.api, "{" + it.prompt + "," + it.member + "}").hashes.empty(), it.chains) << it.member;
  }
}

TEST(PromptHasher, AnImageIsOneBlockOfItsOwn) {
  const auto chat = [](const std::string& part) {
    return Scan(Api::kChatCompletions,
                R"({"messages":[{"role":"user","content":[{"type":"text","text":")" + Text(300) + "\"}," +
                    part + R"(,{"type":"text","text":")" + Text(300, 'z') + "\"}]}]}",
                false);
  };
  const std::string data(100'000, 'A');
  const Chains one =
      chat(R"({"type":"image_url","image_url":{"url":"data:image/png;base64,)" + data + "\"}}");
  EXPECT_EQ(one.hashes.size(), 2U + 1U + 1U);
  const Chains other =
      chat(R"({"type":"image_url","image_url":{"url":"data:image/png;base64,)" + data + "B\"}}");
  EXPECT_EQ(Common(one, other), 2U);
  EXPECT_EQ(Common(one, chat(R"({"type":"input_image","image_url":")" + data + "\"}")), 2U);
}

TEST(PromptHasher, SeveralPromptsAreChainsOfTheirOwn) {
  const std::string a = Text(kBlock * 2, 'a'), b = Text(kBlock * 3 + 5, 'b');
  const Chains both =
      Scan(Api::kCompletions, R"({"model":"m","prompt":[")" + a + R"(","short",")" + b + R"(",""]})", false);
  EXPECT_EQ(both.ends, (std::vector<PromptEnd>{{2, false}, {5, false}}));
  const Chains alone = Scan(Api::kCompletions, R"({"model":"m","prompt":")" + b + "\"}", false);
  EXPECT_TRUE(std::equal(alone.hashes.begin(), alone.hashes.end(), both.hashes.begin() + 2));
}

TEST(PromptHasher, TokenIdsAreFourBytesEach) {
  std::string ids, bytes;
  for (uint32_t i = 0; i < 130; ++i) {
    ids += (i == 0 ? "" : ",") + std::to_string(i * 7919);
    const uint32_t token = i * 7919;
    bytes.append(reinterpret_cast<const char*>(&token), 4);
  }
  PromptHasher hasher;
  hasher.BeginPart(PromptHasher::kMain);
  hasher.Add(bytes);
  hasher.EndPart();
  const Chains one = Scan(Api::kCompletions, "{\"prompt\":[" + ids + "]}");
  EXPECT_EQ(one, ChainsOf(hasher, PrefixRoot("", ""), true));
  const Chains two = Scan(Api::kCompletions, "{\"prompt\":[[" + ids + "],[" + ids + "]]}", false);
  EXPECT_EQ(two.ends, (std::vector<PromptEnd>{{2, false}, {4, false}}));
  EXPECT_EQ(two.hashes[0], two.hashes[2]);
}

TEST(PromptHasher, TokensAreKeptWhereAllPromptsAreTokens) {
  const auto kept = [](Api api, std::string_view body) -> std::optional<PromptTokens> {
    RequestScanner scanner(api);
    scanner.HashPrompt(true, true);
    scanner.Reset(api);
    for (size_t i = 0; i < body.size(); i += 3) scanner.Feed(body.substr(i, 3));
    scanner.Finish();
    const auto tokens = scanner.prompt_hashes()->tokens();
    scanner.Reset(api);  // they belong to who asked for them
    if (tokens == nullptr) return std::nullopt;
    return *tokens;
  };
  EXPECT_EQ(kept(Api::kCompletions, R"({"prompt":[1,200000,3]})"),
            (PromptTokens{.tokens = {1, 200000, 3}, .ends = {3}}));
  EXPECT_EQ(kept(Api::kCompletions, R"({"prompt":[[1,2],[],[3]]})"),
            (PromptTokens{.tokens = {1, 2, 3}, .ends = {2, 3}}));
  EXPECT_EQ(kept(Api::kVllmGenerate, R"({"token_ids":[7,8]})"),
            (PromptTokens{.tokens = {7, 8}, .ends = {2}}));
  EXPECT_EQ(kept(Api::kSglangGenerate, R"({"input_ids":[[7],[8]]})"),
            (PromptTokens{.tokens = {7, 8}, .ends = {1, 2}}));
  EXPECT_EQ(kept(Api::kCompletions, R"({"prompt":"text"})"), std::nullopt);
  EXPECT_EQ(kept(Api::kCompletions, R"({"prompt":["text",[1,2]]})"), std::nullopt);
  EXPECT_EQ(kept(Api::kCompletions, R"({"prompt":[1,2],"prompt":[3]})"), std::nullopt);
  EXPECT_EQ(Scanned(Api::kCompletions, {R"({"prompt":[1,2]})"}).prompt_hashes()->tokens(), nullptr)
      << "they were not asked for";
}

TEST(PromptHasher, WhatTheEngineWouldNotSeeMakesNoChain) {
  const std::string text = Text(600);
  EXPECT_TRUE(
      Scan(Api::kCompletions, R"({"prompt":")" + text + R"(","prompt":")" + text + "\"}").ends.empty());
  EXPECT_TRUE(Scan(Api::kChatCompletions,
                   R"({"messages":[{"role":"user","content":")" + text + R"(","content":"x"}]})")
                  .ends.empty());
}

TEST(PromptHasher, MemoryIsBoundedAndNothingFollowsWhatIsMissing) {
  const std::string text = Text(kBlock * (PromptHasher::kMaxBlocks + 100));
  const std::string messages = R"("messages":[{"role":"user","content":")" + text + "\"}]";
  const RequestScanner scanner = Scanned(Api::kChatCompletions, {"{" + messages + "}"});
  EXPECT_EQ(scanner.prompt_hashes()->blocks(), PromptHasher::kMaxBlocks);
  EXPECT_EQ(ChainsOf(*scanner.prompt_hashes()).hashes.size(), PromptHasher::kMaxBlocks);
  // No room was left for the tools, which the prompt begins with.
  EXPECT_TRUE(Scan(Api::kChatCompletions, "{" + messages + R"(,"tools":[{"name":"f"}]})").hashes.empty());
  EXPECT_EQ(Scan(Api::kChatCompletions, R"({"tools":[{"name":"f"}],)" + messages + "}").hashes.size(),
            PromptHasher::kMaxBlocks);
  std::string many = R"({"prompt":["a")";
  for (int i = 0; i < 20'000; ++i) many += ",\"a\"";
  const Chains chains = Scan(Api::kCompletions, many + "]}");
  EXPECT_EQ(chains.ends.size(), PromptHasher::kMaxBlocks);
}

TEST(PromptHasher, OfABodyThatIsCutOffThePartThatCame) {
  const std::string body = R"({"model":"m","messages":[{"role":"user","content":")" + Text(3000) + "\"}]}";
  const Chains whole = Scan(Api::kChatCompletions, body, false);
  RequestScanner scanner(Api::kChatCompletions);
  scanner.HashPrompt(true);
  scanner.Feed(std::string_view(body).substr(0, 1000));
  scanner.FinishPartial();
  const Chains part = ChainsOf(*scanner.prompt_hashes(), PrefixRoot("m", ""), false);
  EXPECT_EQ(part.hashes.size(), 3U);
  EXPECT_EQ(Common(whole, part), 3U);
}

TEST(PromptHasher, AnyBodyInAnyPiecesSaysTheSame) {
  JsonMaker maker(11);
  constexpr Api kApis[] = {Api::kChatCompletions, Api::kCompletions, Api::kEmbeddings,
                           Api::kResponses,       Api::kMessages,    Api::kUnknown};
  size_t hashed = 0;
  RequestScanner again(Api::kUnknown);
  again.HashPrompt(true);
  for (int round = 0; round < 12000; ++round) {
    const Api api = kApis[maker.random().Below(6)];
    std::string body = "{";
    for (const char* key : {"messages", "prompt", "input", "system", "tools", "documents", "echo",
                            "chat_template", "prompt_logprobs"}) {
      if (maker.random().Below(3) == 0) continue;
      body += (body.size() == 1 ? "\"" : ",\"") + std::string(key) + "\":" + maker.Value(6);
    }
    body += "}";
    const RequestScanner whole = Scanned(api, {body});
    const RequestScanner cut = Scanned(api, maker.Cut(body));
    again.Reset(api);
    again.Feed(body);
    again.Finish();
    if (!whole.ok()) continue;
    const Chains chains = ChainsOf(*whole.prompt_hashes(), 1, true);
    hashed += chains.hashes.size();
    ASSERT_EQ(chains, ChainsOf(*cut.prompt_hashes(), 1, true)) << body;
    ASSERT_EQ(chains, ChainsOf(*again.prompt_hashes(), 1, true)) << body;
    ASSERT_EQ(whole.prompt_hashes()->bytes(), cut.prompt_hashes()->bytes()) << body;
  }
  EXPECT_GT(hashed, 400U);  // 519, and 499 on ARM64, where the maker draws in another order
}

TEST(PromptHasher, HashingChangesNothingElse) {
  JsonMaker maker(13);
  for (int round = 0; round < 3000; ++round) {
    const Api api = static_cast<Api>(maker.random().Below(6));
    const std::string body = maker.random().Below(2) != 0 ? maker.Value(6) : maker.Broken(maker.Value(6));
    RequestScanner plain(api);
    plain.Feed(body);
    plain.Finish();
    const RequestScanner hashing = Scanned(api, {body});
    ASSERT_EQ(plain.error(), hashing.error()) << body;
    ASSERT_TRUE(plain.fields() == hashing.fields()) << body;
  }
}

}  // namespace
}  // namespace fairway::payload
