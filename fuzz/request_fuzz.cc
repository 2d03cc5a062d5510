// Any bytes as the body of any API: no crash, the same result and hashes wherever it is cut and whichever
// kernel runs, and a replaced model is the one that is read back.
//
// Input: one byte for the API, one seed byte for the cuts, then the body.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "base/result.h"
#include "payload/request.h"
#include "payload/string_kernel.h"

namespace {

using fairway::payload::Api;
using fairway::payload::RequestFields;
using fairway::payload::RequestScanner;

RequestScanner ScanWhole(Api api, std::string_view body, bool hash = true) {
  RequestScanner scanner(api);
  scanner.HashPrompt(hash);
  scanner.Feed(body);
  scanner.Finish();
  return scanner;
}

RequestScanner ScanCut(Api api, std::string_view body, uint64_t seed) {
  fairway::base::Random random(seed);
  const uint64_t most = 1 + random.Below(40);
  RequestScanner scanner(api);
  scanner.HashPrompt(true);
  while (!body.empty()) {
    // A copy of its own, so that the sanitizer sees a read beyond the chunk or after it.
    const std::string chunk(body.substr(0, random.Below(most + 1)));
    scanner.Feed(chunk);
    body.remove_prefix(chunk.size());
  }
  scanner.Finish();
  return scanner;
}

void CheckFields(std::string_view body, const RequestFields& fields) {
  uint64_t last = 0;
  FAIRWAY_CHECK(fields.prompt.size() <= RequestScanner::kMaxPromptSpans);
  FAIRWAY_CHECK(fields.model.size() <= RequestScanner::kMaxModelBytes);
  for (const auto& span : fields.prompt) {
    FAIRWAY_CHECK(last <= span.begin && span.begin <= span.end && span.end <= body.size());
    last = span.end;
  }
  if (!fields.has_model) return;
  FAIRWAY_CHECK(body[fields.model_span.begin] == '"' && body[fields.model_span.end - 1] == '"');
}

// The blocks' hashes are those of any other cut, and hashing changes nothing else.
void CheckHashes(const RequestScanner& whole, const RequestScanner& cut, const RequestScanner& plain) {
  FAIRWAY_CHECK(whole.error() == plain.error() && whole.fields() == plain.fields());
  FAIRWAY_CHECK(whole.prompt_hashes()->blocks() <= fairway::payload::PromptHasher::kMaxBlocks);
  if (!whole.ok()) return;
  std::vector<uint64_t> hashes, others;
  std::vector<fairway::payload::PromptEnd> ends, other_ends;
  whole.prompt_hashes()->AppendChains(1, hashes, ends, true);
  cut.prompt_hashes()->AppendChains(1, others, other_ends, true);
  FAIRWAY_CHECK(hashes == others && ends == other_ends);
  FAIRWAY_CHECK(ends.empty() ? hashes.empty() : ends.back().end == hashes.size());
  FAIRWAY_CHECK(whole.prompt_hashes()->bytes() == cut.prompt_hashes()->bytes());
}

void CheckEdit(Api api, std::string_view body, const RequestScanner& scanner, std::string_view model) {
  std::string edited(body);
  if (!fairway::payload::PutModel(edited, scanner.fields(), model)) return;
  if (!scanner.ok()) return;
  const RequestScanner again = ScanWhole(api, edited);
  FAIRWAY_CHECK(again.ok() && again.fields().has_model && again.fields().model == model);
  FAIRWAY_CHECK(again.fields().prompt_bytes == scanner.fields().prompt_bytes);
  FAIRWAY_CHECK(again.fields().prompt.size() == scanner.fields().prompt.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const Api api = static_cast<Api>(data[0] % (static_cast<unsigned>(Api::kUnknown) + 1));
  const std::string_view body(reinterpret_cast<const char*>(data) + 2, size - 2);

  const RequestScanner whole = ScanWhole(api, body);
  CheckFields(body, whole.fields());
  const RequestScanner cut = ScanCut(api, body, data[1]);
  FAIRWAY_CHECK(whole.error() == cut.error());
  FAIRWAY_CHECK(whole.fields() == cut.fields());
  CheckHashes(whole, cut, ScanWhole(api, body, false));
  CheckEdit(api, body, whole, "m");
  CheckEdit(api, body, whole, "llama-2 \"\\\n\xc3\xa4");

  const auto kernels = fairway::payload::AllStringKernels();
  const char* const end = body.data() + body.size();
  for (const auto& kernel : kernels) {
    FAIRWAY_CHECK(kernel.skip_plain(body.data(), end) == kernels.front().skip_plain(body.data(), end));
    FAIRWAY_CHECK(kernel.skip_text(body.data(), end) == kernels.front().skip_text(body.data(), end));
  }

  RequestScanner part(api);
  part.HashPrompt(true);
  part.Feed(body.substr(0, body.size() / 2));
  part.FinishPartial();
  CheckFields(body, part.fields());
  return 0;
}
