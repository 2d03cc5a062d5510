// The body scan by size and kind of text, beside a floor (memchr and memcpy over the same bytes) and a peer
// (simdjson: on demand, which finds the same fields, and its tree).
#include <benchmark/benchmark.h>
#include <simdjson.h>

#include <cstring>
#include <string>

#include "payload/request.h"
#include "payload/usage.h"

namespace fairway::payload {
namespace {

enum Kind { kAscii, kEscapes, kMixed, kUtf8, kManyMessages };

std::string Text(Kind kind, size_t size) {
  static constexpr std::string_view kPieces[] = {
      "The quick brown fox jumps over the lazy dog, again and again. ",
      R"(if (x == \"a\") {\n\treturn \"b\\n\";\n}\n)",
      "Gr\xc3\xbc\xc3\x9f"
      "e aus K\xc3\xb6ln, 20 \xe2\x82\xac and \xe4\xb8\xad\xe6\x96\x87 now and then. ",
      "\xe4\xba\xba\xe5\xb7\xa5\xe6\x99\xba\xe8\x83\xbd\xe6\x98\xaf\xe8\xae\xa1\xe7\xae\x97\xe6\x9c\xba\xe7"
      "\xa7\x91"
      "\xe5\xad\xa6\xe7\x9a\x84\xe5\x88\x86\xe6\x94\xaf\xf0\x9f\x98\x80",
      R"(short text"},{"role":"assistant","content":"another one"},{"role":"user","content":")",
  };
  std::string text;
  while (text.size() < size) text += kPieces[kind];
  return text;
}

std::string Body(const benchmark::State& state) {
  const auto kind = static_cast<Kind>(state.range(1));
  return R"({"model":"llama2","stream":true,"max_tokens":256,"messages":[{"role":"user","content":")" +
         Text(kind, static_cast<size_t>(state.range(0))) + R"("}],"temperature":0.7})";
}

void Name(benchmark::State& state, size_t bytes) {
  static constexpr const char* kNames[] = {"ascii", "escapes", "mixed", "utf8", "many_messages"};
  state.SetLabel(kNames[state.range(1)]);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
}

void Scan(benchmark::State& state) {
  const std::string body = Body(state);
  for (auto _ : state) {
    RequestScanner scanner(Api::kChatCompletions);
    scanner.Feed(body);
    scanner.Finish();
    if (!scanner.ok()) state.SkipWithError("not ok");
    benchmark::DoNotOptimize(scanner.fields().prompt_bytes);
  }
  Name(state, body.size());
}

// With the hashes of the prompt's blocks: what the prefix cache's index costs while the body arrives.
void ScanAndHash(benchmark::State& state) {
  const std::string body = Body(state);
  RequestScanner scanner(Api::kChatCompletions);
  scanner.HashPrompt(true);
  for (auto _ : state) {
    scanner.Reset(Api::kChatCompletions);
    scanner.Feed(body);
    scanner.Finish();
    if (!scanner.ok()) state.SkipWithError("not ok");
    benchmark::DoNotOptimize(scanner.prompt_hashes()->blocks());
  }
  Name(state, body.size());
}

void HashBlocks(benchmark::State& state) {
  const auto kernels = AllBlockKernels();
  const auto index = static_cast<size_t>(state.range(1));
  if (index >= kernels.size()) return state.SkipWithError("not on this CPU");
  const std::string text = Text(kAscii, static_cast<size_t>(state.range(0)));
  std::vector<uint64_t> hashes(text.size() / PromptHasher::kBlockBytes);
  for (auto _ : state) {
    kernels[index].hash(text.data(), hashes.size(), hashes.data());
    benchmark::ClobberMemory();
  }
  state.SetLabel(kernels[index].name);
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}

void Chains(benchmark::State& state) {
  PromptHasher hasher;
  hasher.BeginPart(PromptHasher::kMain);
  hasher.Add(Text(kAscii, 2000 * PromptHasher::kBlockBytes));
  hasher.EndPart();
  std::vector<uint64_t> hashes;
  std::vector<PromptEnd> ends;
  for (auto _ : state) {
    hashes.clear();
    ends.clear();
    hasher.AppendChains(PrefixRoot("model", "salt"), hashes, ends);
    benchmark::DoNotOptimize(hashes.data());
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(hashes.size()));
}

// As Envoy sends it.
void ScanIn16KbChunks(benchmark::State& state) {
  const std::string body = Body(state);
  for (auto _ : state) {
    RequestScanner scanner(Api::kChatCompletions);
    for (size_t at = 0; at < body.size(); at += 16384) scanner.Feed(std::string_view(body).substr(at, 16384));
    scanner.Finish();
    benchmark::DoNotOptimize(scanner.fields().prompt_bytes);
  }
  Name(state, body.size());
}

void FloorMemchr(benchmark::State& state) {
  const std::string body = Body(state);
  for (auto _ : state) benchmark::DoNotOptimize(std::memchr(body.data(), 1, body.size()));
  Name(state, body.size());
}

void FloorMemcpy(benchmark::State& state) {
  const std::string body = Body(state);
  std::string copy(body.size(), 0);
  for (auto _ : state) {
    std::memcpy(copy.data(), body.data(), body.size());
    benchmark::ClobberMemory();
  }
  Name(state, body.size());
}

void PeerOnDemand(benchmark::State& state) {
  const simdjson::padded_string body(Body(state));
  simdjson::ondemand::parser parser;
  for (auto _ : state) {
    simdjson::ondemand::document document;
    if (parser.iterate(body).get(document) != simdjson::SUCCESS) state.SkipWithError("not ok");
    simdjson::ondemand::object root;
    if (document.get_object().get(root) != simdjson::SUCCESS) state.SkipWithError("not ok");
    size_t bytes = 0;
    for (auto field : root) {
      const std::string_view key = field.unescaped_key().value();
      if (key == "model") bytes += field.value().get_string().value().size();
      if (key == "stream") bytes += field.value().get_bool().value() ? 1 : 0;
      if (key != "messages") continue;
      for (auto message : field.value().get_array()) {
        for (auto member : message.get_object()) {
          if (member.unescaped_key().value() == "content")
            bytes += member.value().raw_json_token().value().size();
        }
      }
    }
    benchmark::DoNotOptimize(bytes);
  }
  Name(state, body.size());
}

void PeerTree(benchmark::State& state) {
  const simdjson::padded_string body(Body(state));
  simdjson::dom::parser parser;
  for (auto _ : state) {
    simdjson::dom::element root;
    if (parser.parse(body).get(root) != simdjson::SUCCESS) state.SkipWithError("not ok");
    benchmark::DoNotOptimize(root);
  }
  Name(state, body.size());
}

void Sizes(benchmark::internal::Benchmark* benchmark) {
  for (const int64_t kind : {kAscii, kEscapes, kMixed, kUtf8, kManyMessages}) {
    for (const int64_t size : {2 << 10, 40 << 10, 440 << 10, 1 << 20}) benchmark->Args({size, kind});
  }
}

BENCHMARK(Scan)->Apply(Sizes);
BENCHMARK(ScanAndHash)->Apply(Sizes);
BENCHMARK(HashBlocks)->ArgsProduct({{16 << 10, 440 << 10}, {0, 1, 2}});
BENCHMARK(Chains);
BENCHMARK(ScanIn16KbChunks)->Args({440 << 10, kAscii});
BENCHMARK(FloorMemchr)->Args({2 << 10, kAscii})->Args({440 << 10, kAscii});
BENCHMARK(FloorMemcpy)->Args({2 << 10, kAscii})->Args({440 << 10, kAscii});
BENCHMARK(PeerOnDemand)->Apply(Sizes);
BENCHMARK(PeerTree)->Apply(Sizes);

void ScanTokenIds(benchmark::State& state) {
  std::string body = R"({"model":"m","prompt":[1)";
  for (int i = 0; i < 100'000; ++i) body += "," + std::to_string(i * 7919 % 128'000);
  body += "]}";
  for (auto _ : state) {
    RequestScanner scanner(Api::kCompletions);
    scanner.Feed(body);
    scanner.Finish();
    benchmark::DoNotOptimize(scanner.fields().prompt_bytes);
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(body.size()));
}
BENCHMARK(ScanTokenIds);

// One event of a stream: what each output token costs where a response is watched.
void UsagePerEvent(benchmark::State& state) {
  const std::string event =
      R"(data: {"id":"cmpl-7b1","object":"chat.completion.chunk","created":1743500000,"model":"llama2",)"
      R"("choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]})"
      "\n\n";
  UsageScanner scanner(Api::kChatCompletions, true);
  const std::string_view view = event;
  for (auto _ : state) {
    if (state.range(0) == 0) {
      scanner.Feed(view);
    } else {
      scanner.Feed(view.substr(0, 100));
      scanner.Feed(view.substr(100));
    }
  }
  benchmark::DoNotOptimize(scanner.events());
  state.SetLabel(state.range(0) == 0 ? "whole" : "cut");
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(event.size()));
}
BENCHMARK(UsagePerEvent)->Arg(0)->Arg(1);

}  // namespace
}  // namespace fairway::payload
