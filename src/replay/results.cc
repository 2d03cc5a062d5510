#include "replay/results.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <optional>

#include "base/strings.h"

namespace fairway::replay {

namespace {

constexpr const char* kEndNames[kEnds] = {"answered", "shed", "failed", "timed_out", "unfinished"};

double At(const std::vector<float>& sorted, double part) {
  const auto rank = static_cast<size_t>(std::ceil(part * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

template <typename... Values>
void Print(std::string& out, const char* format, Values... values) {
  std::array<char, 512> text{};
  std::snprintf(text.data(), text.size(), format, values...);
  out += text.data();
}

Row& RowOf(std::vector<Row>& rows, const std::string& policy, const std::string& traffic) {
  for (Row& row : rows)
    if (row.policy == policy && row.traffic == traffic) return row;
  Row& row = rows.emplace_back();
  row.policy = policy;
  row.traffic = traffic;
  return row;
}

void AddRecords(const Workload& workload, const std::vector<Record>& records, std::optional<size_t> traffic,
                double weight, Row& row) {
  std::vector<float> first_token, per_token, total;
  double ended = 0, output = 0;
  for (const Record& record : records) {
    if (traffic && record.traffic != *traffic) continue;
    // What is given while requests come, whenever they were due: in overload less than what is asked for,
    // however long the rest takes afterwards.
    const base::Nanos end = record.due + static_cast<base::Nanos>(record.total * 1e9);
    if (record.end == End::kAnswered && end >= workload.warmup && end <= workload.duration) {
      ++ended;
      output += record.answer_tokens;
    }
    if (record.due < workload.warmup) continue;
    row.requests += weight;
    row.ends[static_cast<size_t>(record.end)] += weight;
    row.retried += record.retried ? weight : 0;
    if (record.end != End::kAnswered) continue;
    first_token.push_back(record.first_token);
    if (record.answer_tokens > 1) per_token.push_back(record.per_token);
    total.push_back(record.total);
  }
  const double seconds = base::ToSeconds(std::max<base::Nanos>(1, workload.duration - workload.warmup));
  row.requests_per_second += weight * ended / seconds;
  row.output_tokens_per_second += weight * output / seconds;
  row.first_token.Add(Summary::Of(first_token), weight);
  row.per_token.Add(Summary::Of(per_token), weight);
  row.total.Add(Summary::Of(total), weight);
}

std::string JsonOf(const Summary& summary) {
  std::string out;
  Print(out, "{\"mean\": %.9g, \"p50\": %.9g, \"p90\": %.9g, \"p99\": %.9g}", summary.mean, summary.p50,
        summary.p90, summary.p99);
  return out;
}

}  // namespace

Summary Summary::Of(std::vector<float>& values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const float value : values) sum += value;
  return {sum / static_cast<double>(values.size()), At(values, 0.5), At(values, 0.9), At(values, 0.99)};
}

void Summary::Add(const Summary& other, double weight) {
  mean += weight * other.mean;
  p50 += weight * other.p50;
  p90 += weight * other.p90;
  p99 += weight * other.p99;
}

void Summarize(const Workload& workload, const std::string& policy, const std::vector<Record>& records,
               const RunTotals& totals, double weight, std::vector<Row>& rows) {
  Row& all = RowOf(rows, policy, "");
  AddRecords(workload, records, std::nullopt, weight, all);
  all.spread += weight * totals.spread;
  all.hit_rate += weight * totals.hit_rate;
  all.preemptions += weight * totals.preemptions;
  all.lora_loads += weight * totals.lora_loads;
  all.pages_per_second += weight * totals.pages_per_second;
  if (workload.classes.size() < 2) return;
  for (size_t i = 0; i < workload.classes.size(); ++i)
    AddRecords(workload, records, i, weight, RowOf(rows, policy, workload.classes[i].name));
}

std::string Table(const std::vector<Row>& rows) {
  size_t width = 22;
  for (const Row& row : rows)
    width = std::max(width, row.traffic.empty() ? row.policy.size() : row.traffic.size() + 2);
  std::string out(width, ' ');
  out +=
      " | first token, ms              | per token, ms      | end to end, s        |  out    | of 100 "
      "requests    |       | cache\n";
  out += std::string("policy") + std::string(width - 6, ' ');
  out +=
      " |   mean    p50    p90     p99 |  mean   p50   p99  |   mean    p90    p99 | tok/s   |  shed fail  "
      "given up | spread | hits\n";
  for (const Row& row : rows) {
    const std::string name = row.traffic.empty() ? row.policy : "  " + row.traffic;
    out += name + std::string(width - name.size(), ' ');
    const auto ms = [](double seconds) { return seconds * 1e3; };
    const double percent = 100 / std::max(row.requests, 1e-9);
    Print(out,
          " | %6.0f %6.0f %6.0f %7.0f | %5.1f %5.1f %5.1f  | %6.2f %6.2f %6.2f | %7.0f | %5.1f %4.1f      "
          "%5.1f |",
          ms(row.first_token.mean), ms(row.first_token.p50), ms(row.first_token.p90), ms(row.first_token.p99),
          ms(row.per_token.mean), ms(row.per_token.p50), ms(row.per_token.p99), row.total.mean, row.total.p90,
          row.total.p99, row.output_tokens_per_second, row.ends[1] * percent, row.ends[2] * percent,
          (row.ends[3] + row.ends[4]) * percent);
    if (row.traffic.empty()) Print(out, "  %5.2f | %3.0f %%", row.spread, row.hit_rate * 100);
    while (out.back() == ' ') out.pop_back();
    out += "\n";
  }
  return out;
}

std::string Json(const std::string& workload, const std::string& setting, const std::vector<Row>& rows) {
  std::string out = "{\"workload\": " + base::JsonString(workload) +
                    ", \"setting\": " + base::JsonString(setting) + ", \"rows\": [";
  bool first = true;
  for (const Row& row : rows) {
    out += first ? "\n  {" : ",\n  {";
    first = false;
    out += "\"policy\": " + base::JsonString(row.policy);
    out += row.traffic.empty() ? ", \"class\": null" : ", \"class\": " + base::JsonString(row.traffic);
    Print(out, ", \"requests\": %.9g", row.requests);
    for (size_t i = 0; i < kEnds; ++i) Print(out, ", \"%s\": %.9g", kEndNames[i], row.ends[i]);
    Print(out, ", \"retried\": %.9g", row.retried);
    out += ", \"first_token_seconds\": " + JsonOf(row.first_token);
    out += ", \"per_token_seconds\": " + JsonOf(row.per_token);
    out += ", \"end_to_end_seconds\": " + JsonOf(row.total);
    Print(out, ", \"requests_per_second\": %.9g, \"output_tokens_per_second\": %.9g", row.requests_per_second,
          row.output_tokens_per_second);
    if (row.traffic.empty()) {
      Print(out, ", \"spread\": %.9g, \"prefix_hit_rate\": %.9g, \"preemptions\": %.9g", row.spread,
            row.hit_rate, row.preemptions);
      Print(out, ", \"lora_loads\": %.9g, \"pages_per_server_second\": %.9g", row.lora_loads,
            row.pages_per_second);
    }
    out += "}";
  }
  return out + "\n]}\n";
}

}  // namespace fairway::replay
