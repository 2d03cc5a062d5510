#include "sources/kv_events/events.h"

#include <algorithm>
#include <array>

#include "sources/kv_events/msgpack.h"

namespace fairway::sources::kv_events {
namespace {

using Kind = MsgpackToken::Kind;

// Beyond it a number of tokens or blocks is nonsense, and sums of it could overflow.
constexpr uint64_t kMostTokens = uint64_t{1} << 32;

enum class Field : uint8_t { kType, kHashes, kTokens, kBlockSize, kMedium, kGroup, kSpecKind, kOther };

struct NamedField {
  std::string_view name;
  Field field;
};
constexpr std::array kNames{NamedField{"type", Field::kType},
                            NamedField{"block_hashes", Field::kHashes},
                            NamedField{"token_ids", Field::kTokens},
                            NamedField{"block_size", Field::kBlockSize},
                            NamedField{"medium", Field::kMedium},
                            NamedField{"group_idx", Field::kGroup},
                            NamedField{"kv_cache_spec_kind", Field::kSpecKind}};

// By place, behind the type.
constexpr std::array kStoredFields{Field::kHashes, Field::kOther,   Field::kTokens, Field::kBlockSize,
                                   Field::kOther,  Field::kMedium,  Field::kOther,  Field::kOther,
                                   Field::kGroup,  Field::kSpecKind};
constexpr std::array kRemovedFields{Field::kHashes, Field::kMedium, Field::kGroup};

bool IsDevice(std::string_view medium) {
  return medium.size() == 3 && (medium[0] | 0x20) == 'g' && (medium[1] | 0x20) == 'p' &&
         (medium[2] | 0x20) == 'u';
}

bool IsWholePrefix(std::string_view kind) {
  return kind == "full_attention" || kind == "mla_attention" || kind == "sink_full_attention";
}

enum class Outcome : uint8_t { kRead, kUnknown, kMalformed };

class EventReader {
 public:
  explicit EventReader(std::string_view bytes) : reader_(bytes) {}

  Outcome Read(KvEvent& event) {
    const auto head = reader_.Next();
    if (!head) return Outcome::kMalformed;
    const bool read = head->kind == Kind::kMap     ? ReadMap(head->number)
                      : head->kind == Kind::kArray ? ReadArray(head->number)
                                                   : false;
    if (type_ == "AllBlocksCleared") {
      event_.kind = KvEvent::Kind::kCleared;
    } else if (type_ == "BlockStored") {
      event_.kind = KvEvent::Kind::kStored;
    } else if (type_ == "BlockRemoved") {
      event_.kind = KvEvent::Kind::kRemoved;
    } else {
      return type_.empty() ? Outcome::kMalformed : Outcome::kUnknown;
    }
    if (!read || !Fits()) return Outcome::kMalformed;
    event = event_;
    return Outcome::kRead;
  }

 private:
  bool ReadMap(uint64_t pairs) {
    for (; pairs > 0; --pairs) {
      const auto key = reader_.Next();
      if (!key || key->kind != Kind::kText) return false;
      const auto named = std::find_if(kNames.begin(), kNames.end(),
                                      [&](const NamedField& field) { return field.name == key->bytes; });
      if (!ReadField(named == kNames.end() ? Field::kOther : named->field)) fits_ = false;
    }
    return true;
  }

  bool ReadArray(uint64_t items) {
    if (items == 0 || !ReadField(Field::kType)) return false;
    for (size_t i = 0; i + 1 < items; ++i) {
      Field field = Field::kOther;
      if (type_ == "BlockStored" && i < kStoredFields.size()) field = kStoredFields[i];
      if (type_ == "BlockRemoved" && i < kRemovedFields.size()) field = kRemovedFields[i];
      if (!ReadField(field)) return false;
    }
    return true;
  }

  // Takes the value's bytes, or what there is of it, whatever it is: false when it cannot be.
  bool ReadField(Field field) {
    if (field == Field::kOther) return reader_.Skip();
    MsgpackReader value = reader_;
    if (!reader_.Skip()) return false;
    const auto token = value.Next();
    if (token->kind == Kind::kNil) return true;
    switch (field) {
      case Field::kType:
        type_ = token->bytes;
        return token->kind == Kind::kText;
      case Field::kHashes:
        event_.blocks = token->number;
        return token->kind == Kind::kArray && AreHashes(value, token->number);
      case Field::kTokens:
        tokens_ = token->number;
        return token->kind == Kind::kArray;
      case Field::kBlockSize:
        event_.block_size = token->number;
        return token->kind == Kind::kInteger && token->number < kMostTokens;
      case Field::kMedium:
        event_.on_device = IsDevice(token->bytes);
        return token->kind == Kind::kText;
      case Field::kGroup:
        event_.group = static_cast<int64_t>(token->number);
        return token->kind == Kind::kInteger;
      case Field::kSpecKind:
        event_.whole_prefix = IsWholePrefix(token->bytes);
        return token->kind == Kind::kText;
      case Field::kOther:
        break;
    }
    return false;
  }

  static bool AreHashes(MsgpackReader& reader, uint64_t count) {
    for (; count > 0; --count) {
      const auto hash = reader.Next();
      const bool is_hash =
          hash && (hash->kind == Kind::kInteger || (hash->kind == Kind::kBytes && !hash->bytes.empty()));
      if (!is_hash) return false;
    }
    return true;
  }

  // Tokens may be missing: then blocks that were stored before are in another memory, too.
  bool Fits() const {
    if (!fits_) return false;
    if (event_.kind != KvEvent::Kind::kStored) return true;
    if (event_.block_size == 0) return false;
    return tokens_ == 0 || tokens_ == event_.blocks * event_.block_size;
  }

  MsgpackReader reader_;
  KvEvent event_;
  std::string_view type_;
  uint64_t tokens_ = 0;
  bool fits_ = true;
};

// Before the events of a batch: how many there are. Nothing: it is no batch.
std::optional<uint64_t> FindEvents(MsgpackReader& reader) {
  const auto head = reader.Next();
  if (!head) return std::nullopt;
  const auto list = [&]() -> std::optional<uint64_t> {
    const auto events = reader.Next();
    if (!events || events->kind != Kind::kArray) return std::nullopt;
    return events->number;
  };
  if (head->kind == Kind::kArray) {
    if (head->number < 2 || !reader.Skip()) return std::nullopt;
    return list();
  }
  if (head->kind != Kind::kMap) return std::nullopt;
  for (uint64_t pairs = head->number; pairs > 0; --pairs) {
    const auto key = reader.Next();
    if (!key || key->kind != Kind::kText) return std::nullopt;
    if (key->bytes == "events") return list();
    if (!reader.Skip()) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

BatchOutcome ReadBatch(std::string_view payload, EventSink& sink) {
  BatchOutcome outcome;
  MsgpackReader reader(payload);
  const auto events = FindEvents(reader);
  if (!events) return outcome;
  for (uint64_t left = *events; left > 0; --left) {
    const std::string_view bytes = reader.rest();
    if (!reader.Skip()) {
      ++outcome.malformed;
      break;
    }
    KvEvent event;
    switch (EventReader(bytes.substr(0, bytes.size() - reader.rest().size())).Read(event)) {
      case Outcome::kRead:
        ++outcome.events;
        sink.On(event);
        break;
      case Outcome::kUnknown:
        ++outcome.unknown;
        break;
      case Outcome::kMalformed:
        ++outcome.malformed;
        break;
    }
  }
  outcome.readable = true;
  return outcome;
}

}  // namespace fairway::sources::kv_events
