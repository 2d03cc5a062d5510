#include "routing/decision_log.h"

#include <algorithm>
#include <utility>

#include "routing/decision_html.h"
#include "routing/decision_json.h"

namespace fairway::routing {
namespace {

constexpr size_t kPiece = 64u << 10;

}  // namespace

std::shared_ptr<Decision> DecisionLog::Add(std::shared_ptr<Decision> decision) {
  Entry entry{std::move(decision), 0};
  entry.bytes = entry.decision->bytes();
  std::shared_ptr<Decision> spare;
  const std::lock_guard lock(mutex_);
  ++added_;
  // The names of a fleet stay as long as one of its decisions: they are counted with the first of them.
  if (entries_.empty() || entries_.back().decision->names != entry.decision->names)
    entry.bytes += entry.decision->names->bytes;
  bytes_ += entry.bytes;
  entries_.push_back(std::move(entry));
  while (entries_.size() > capacity_ || (bytes_ > max_bytes_ && entries_.size() > 1)) {
    bytes_ -= entries_.front().bytes;
    spare = std::move(entries_.front().decision);
    entries_.pop_front();
  }
  // With the mutex held nobody else can begin to read it.
  return spare.use_count() == 1 ? std::move(spare) : nullptr;
}

std::shared_ptr<const Decision> DecisionLog::Before(uint64_t& before, const std::string& request_id) const {
  constexpr int kAtOnce = 64;  // who adds one shall not wait for a long search
  for (;;) {
    const std::lock_guard lock(mutex_);
    before = std::min(before, added_ + 1);
    const uint64_t oldest = added_ - entries_.size() + 1;
    for (int looked_at = 0; looked_at < kAtOnce; ++looked_at) {
      if (before <= oldest) return nullptr;
      const Entry& entry = entries_[--before - oldest];
      if (request_id.empty() || entry.decision->request_id == request_id) return entry.decision;
    }
  }
}

// One reader's way through the log.
class DecisionLog::Reader {
 public:
  Reader(const DecisionLog& log, base::Nanos now, std::string request_id, DecisionFormat format)
      : log_(log), now_(now), request_id_(std::move(request_id)), format_(format) {
    next_ = log_.Before(before_, request_id_);
  }
  bool none() const { return next_ == nullptr; }

  std::string Next() {
    std::string out;
    if (ended_) return out;
    if (!std::exchange(began_, true)) out += Head();
    for (; next_ != nullptr; next_ = log_.Before(before_, request_id_)) {
      if (out.size() >= kPiece) return out;
      Append(*next_, out);
    }
    ended_ = true;
    return out + Tail();
  }

 private:
  bool list() const { return format_ == DecisionFormat::kHtml && request_id_.empty(); }
  std::string Head() const {
    if (format_ == DecisionFormat::kJson) return "{\"decisions\":[";
    if (format_ == DecisionFormat::kPrefixes) return "{\"requests\":[";
    if (format_ == DecisionFormat::kText) return none() ? "no decision yet\n" : "";
    return HtmlHead("Decisions") + (list() ? HtmlListHead() : "");
  }
  std::string Tail() const {
    if (format_ == DecisionFormat::kJson || format_ == DecisionFormat::kPrefixes) return "]}\n";
    if (format_ == DecisionFormat::kText) return "";
    return (list() ? HtmlListTail() : "") + HtmlTail();
  }
  void Append(const Decision& decision, std::string& out) {
    if (list()) {
      out += HtmlRow(decision, now_);
      return;
    }
    const Told told = Explain(decision, scratch_, explanation_);
    if (format_ == DecisionFormat::kText) out += ToText(told) + "\n";
    if (format_ == DecisionFormat::kHtml) out += ToHtml(told, now_);
    if (format_ != DecisionFormat::kJson && format_ != DecisionFormat::kPrefixes) return;
    out += std::exchange(first_, false) ? "\n" : ",\n";
    base::JsonWriter json(out);
    json.BeginObject().Member("ageMs", static_cast<double>(now_ - decision.at) / base::kMillisecond);
    if (format_ == DecisionFormat::kPrefixes) {
      WritePrefixes(told, json);
    } else {
      WriteReasons(told, json);
      WritePicture(decision, json);
    }
    json.EndObject();
  }

  const DecisionLog& log_;
  const base::Nanos now_;
  const std::string request_id_;
  const DecisionFormat format_;
  uint64_t before_ = UINT64_MAX;
  std::shared_ptr<const Decision> next_;
  bool began_ = false;
  bool ended_ = false;
  bool first_ = true;
  scheduling::Scratch scratch_;
  scheduling::Explanation explanation_;
};

std::function<std::string()> DecisionLog::Pages(base::Nanos now, const std::string& request_id,
                                                DecisionFormat format) const {
  auto reader = std::make_shared<Reader>(*this, now, request_id.substr(0, Decision::kMaxText), format);
  if (!request_id.empty() && reader->none()) return {};
  return [reader = std::move(reader)] { return reader->Next(); };
}

std::string DecisionLog::Render(base::Nanos now, const std::string& request_id, DecisionFormat format) const {
  const auto pages = Pages(now, request_id, format);
  std::string out;
  if (!pages) return out;
  for (std::string piece = pages(); !piece.empty(); piece = pages()) out += piece;
  return out;
}

}  // namespace fairway::routing
