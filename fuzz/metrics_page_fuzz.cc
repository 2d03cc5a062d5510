// Any bytes as a model server's metrics page, or as what it tells beside it: values stay in their ranges, names stay inside the page or the
// sample, and a page reads the same with each line end as CRLF and with its last line end left out.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "sources/scrape/metrics_page.h"

namespace {

using fairway::sources::scrape::EngineReaders;
using fairway::sources::scrape::EngineSample;

bool IsIn(std::string_view name, std::string_view whole) {
  return name.data() >= whole.data() && name.data() + name.size() <= whole.data() + whole.size();
}

void CheckSample(std::string_view page, const EngineSample& sample) {
  for (const auto& count : {sample.queued, sample.running}) {
    FAIRWAY_CHECK(!count || (*count >= 0 && *count <= 1e9));
  }
  FAIRWAY_CHECK(!sample.kv_usage || (*sample.kv_usage >= 0 && *sample.kv_usage <= 1));
  for (const auto* list : {&sample.running_adapters, &sample.waiting_adapters}) {
    FAIRWAY_CHECK(list->size() <= fairway::sources::scrape::kMaxAdaptersPerList);
    for (const std::string_view name : *list) {
      FAIRWAY_CHECK(!name.empty() && (IsIn(name, page) || IsIn(name, sample.unescaped)));
    }
  }
  FAIRWAY_CHECK(sample.models.size() <= fairway::sources::scrape::kMaxModels);
  for (const std::string_view name : sample.models) {
    FAIRWAY_CHECK(!name.empty() && (IsIn(name, page) || IsIn(name, sample.unescaped_models)));
  }
}

bool Same(const EngineSample& a, const EngineSample& b) {
  return a.queued == b.queued && a.running == b.running && a.kv_usage == b.kv_usage &&
         a.has_lora == b.has_lora && a.models == b.models && a.running_adapters == b.running_adapters &&
         a.waiting_adapters == b.waiting_adapters && a.max_lora == b.max_lora &&
         a.block_size == b.block_size && a.num_blocks == b.num_blocks && a.families == b.families &&
         a.garbage == b.garbage && a.malformed == b.malformed && a.missing == b.missing;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const EngineReaders engines;
  const std::string_view page(reinterpret_cast<const char*>(data), size);
  // Other line ends. A page that has '\r' already means something else with one more.
  std::string crlf;
  const bool comparable = page.find('\r') == std::string_view::npos;
  if (comparable) {
    for (const char c : page) {
      if (c == '\n') crlf += '\r';
      crlf += c;
    }
  }
  EngineSample sample;
  EngineSample other;
  for (const char* name : {"vllm", "sglang", "trtllm-serve", "triton-tensorrt-llm", "triton"}) {
    const auto* reader = engines.Find(name);
    const auto waiting = fairway::sources::scrape::ReadWaitingTokens(page, reader->waiting_tokens());
    FAIRWAY_CHECK(!waiting || *waiting <= fairway::sources::scrape::kMaxWaitingTokens *
                                              fairway::sources::scrape::kMaxRanks);
    reader->Read(page, sample);
    CheckSample(page, sample);
    if (comparable) {
      reader->Read(crlf, other);
      FAIRWAY_CHECK(Same(sample, other));
    }
    if (page.ends_with('\n')) {
      reader->Read(page.substr(0, page.size() - 1), other);
      FAIRWAY_CHECK(Same(sample, other));
    }
  }
  engines.Detect(page, sample);
  (void)fairway::api::ParseMetricSpec(page);
  return 0;
}
