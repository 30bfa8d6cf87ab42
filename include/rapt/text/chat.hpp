// Chat formats: how a conversation is written as text for the model families that rapt runs.
//
//   family    a turn                                                            end of a turn
//   chatml    <|im_start|>user\n...<|im_end|>\n                                 <|im_end|>
//   gemma     <start_of_turn>user\n...<end_of_turn>\n    (assistant: "model")   <end_of_turn>
//   llama3    <|start_header_id|>user<|end_header_id|>\n\n...<|eot_id|>         <|eot_id|>
//   mistral   [INST] ...[/INST] and the reply bare, then </s>                   </s>
//   phi3      <|user|>\n...<|end|>\n                                            <|end|>
//   zephyr    <|user|>\n...</s>\n                                               </s>
//   deepseek  <｜User｜>... and <｜Assistant｜>...<｜end▁of▁sentence｜> <｜end▁of▁sentence｜>
//
// A model file states its format as a Jinja program. There is no interpreter here: the program is
// recognized by the markers in it, and its variations that matter (a default system turn, blanks
// around [INST]) are read from its text. What is not recognized is a FormatError: a model that is
// spoken to in the wrong format answers, only worse.
//
//   ChatFormat format = ChatFormat::detect(tokenizer.chat_template());
//   ChatSession chat(tokenizer, format, "You are brief.");
//   auto ids = chat.user_turn("Hello");        // feed these, generate; do not feed the end token
//   ids = chat.user_turn("And now?");          // only what is new: the cache keeps the rest
//
// What users write is never read for special tokens, so nobody can end his turn and speak as
// another. The text begins without BOS; ChatSession puts it where the tokenizer asks for one.
//
// Source: the chat templates published with SmolLM2, Qwen2.5, Gemma 3, Llama 3, Mistral, Phi-3,
// Zephyr and DeepSeek-V3.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/tokenizer.hpp"

namespace rapt {

enum class ChatFamily { chatml, gemma, llama3, mistral, phi3, zephyr, deepseek };

struct ChatMessage {
  std::string role;  // "system" (first only), "user", "assistant"
  std::string content;
};

/// A piece of a conversation as text; `literal` marks what people wrote, for
/// EncodeOptions::literal.
struct ChatText {
  std::string text;
  std::vector<TextRange> literal;
};

class ChatFormat {
 public:
  explicit ChatFormat(ChatFamily family) : family_(family) {}

  /// The format behind a Jinja chat template. Throws FormatError where there is none or it is not
  /// known.
  static ChatFormat detect(std::string_view chat_template) {
    const auto has = [&](std::string_view marker) {
      return chat_template.find(marker) != std::string_view::npos;
    };
    if (chat_template.empty())
      throw FormatError(
          "chat: the model has no chat template, expected an instruction-tuned model");
    if (has("<|im_start|>")) {
      ChatFormat format(ChatFamily::chatml);
      format.default_system_ = default_system_turn(chat_template);
      return format;
    }
    if (has("<start_of_turn>")) return ChatFormat(ChatFamily::gemma);
    if (has("<|start_header_id|>")) {
      ChatFormat format(ChatFamily::llama3);
      // Llama 3.1 and later always open with a system turn that states two dates.
      if (has("Cutting Knowledge Date: December 2023"))
        format.system_head_ = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
      return format;
    }
    if (has("<｜User｜>") && has("<｜Assistant｜>")) return ChatFormat(ChatFamily::deepseek);
    if (has("[INST]") && !has("<<SYS>>")) {
      ChatFormat format(ChatFamily::mistral);
      if (has("[SYSTEM_PROMPT]")) format.system_block_ = true;
      // ' [INST] ' of the first versions, '[INST] ' of v3, '[INST]' since Tekken.
      format.before_user_ = has("[INST] ") ? "[INST] " : "[INST]";
      format.after_user_ = has(" [/INST]") ? " [/INST]" : "[/INST]";
      return format;
    }
    if (has("<|assistant|>") && has("<|end|>")) return ChatFormat(ChatFamily::phi3);
    if (has("<|assistant|>") && has("<|user|>")) return ChatFormat(ChatFamily::zephyr);
    throw FormatError(detail::text(
        "chat: the model's chat template begins ", to_valid_utf8(chat_template.substr(0, 80)),
        ", expected one of ChatML, Gemma, Llama 3, Mistral, Phi-3, Zephyr, DeepSeek"));
  }

  ChatFamily family() const { return family_; }
  /// What the template says where the conversation brings no system turn; empty: nothing.
  const std::string& default_system() const { return default_system_; }

  /// A whole conversation; with `ask`, the head of the assistant's next turn at its end.
  /// Throws ValueError for a role it does not know or a system turn that is not the first.
  ChatText render(std::span<const ChatMessage> messages, bool ask = true) const {
    ChatText out;
    std::string system;
    bool first = true;
    for (std::size_t i = 0; i < messages.size(); ++i) {
      const ChatMessage& message = messages[i];
      if (message.role == "system") {
        if (i != 0)
          throw ValueError(
              detail::text("chat: message ", i, " is a system turn, expected it first"));
        system = message.content;
        continue;
      }
      if (message.role != "user" && message.role != "assistant")
        throw ValueError(detail::text("chat: the role of message ", i, " is ", message.role,
                                      ", expected system, user or assistant"));
      if (first) open(out, system, i > 0);
      if (message.role == "user") {
        user(out, message.content, first ? system : std::string());
      } else {
        begin_reply(out);
        add_content(out, message.content);
        out.text += end_of_reply();
      }
      first = false;
    }
    if (first) open(out, system, !messages.empty());
    if (ask) begin_reply(out);
    return out;
  }

  /// What a user's turn adds to a conversation whose last reply stands there without its end:
  /// that end, the turn, and the head of the next reply.
  ChatText next_turn(std::string_view content) const {
    ChatText out;
    out.text = end_of_reply();
    user(out, content, {});
    begin_reply(out);
    return out;
  }

 private:
  static std::string_view trim(std::string_view text) {
    constexpr std::string_view blanks = " \t\n\r\v\f";
    const std::size_t begin = text.find_first_not_of(blanks);
    if (begin == std::string_view::npos) return {};
    return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
  }

  /// The text between <|im_start|>system\n and <|im_end|> where the template holds it as one
  /// string.
  static std::string default_system_turn(std::string_view chat_template) {
    constexpr std::string_view head = "<|im_start|>system", end = "<|im_end|>";
    for (std::size_t at = chat_template.find(head); at != std::string_view::npos;
         at = chat_template.find(head, at + 1)) {
      std::string system;
      bool complete = false;
      for (std::size_t i = at + head.size(); i < chat_template.size(); ++i) {
        if (chat_template.substr(i, end.size()) == end) {
          complete = true;
          break;
        }
        char c = chat_template[i];
        if (c == '\'' || c == '"') break;  // the string ends: the text is a variable
        if (c == '\\' && i + 1 < chat_template.size()) {
          c = chat_template[++i];
          if (c == 'n') c = '\n';
          if (c == 't') c = '\t';
        }
        system += c;
      }
      if (complete && system.starts_with('\n') && system.find("{{") == std::string::npos)
        return system.substr(1);
    }
    return {};
  }

  static void add_content(ChatText& out, std::string_view content) {
    const std::size_t begin = out.text.size();
    out.text += content;
    if (!content.empty()) out.literal.push_back({begin, out.text.size()});
  }

  void marked(ChatText& out, std::string_view role, std::string_view content) const {
    switch (family_) {
      case ChatFamily::chatml:
        out.text += detail::text("<|im_start|>", role, "\n");
        break;
      case ChatFamily::gemma:
        out.text += detail::text("<start_of_turn>", role, "\n");
        break;
      case ChatFamily::llama3:
        out.text += detail::text("<|start_header_id|>", role, "<|end_header_id|>\n\n");
        break;
      case ChatFamily::phi3:
      case ChatFamily::zephyr:
        out.text += detail::text("<|", role, "|>\n");
        break;
      case ChatFamily::mistral:
      case ChatFamily::deepseek:
        break;
    }
    const bool trims = family_ == ChatFamily::gemma || family_ == ChatFamily::llama3;
    add_content(out, trims ? trim(content) : content);
    out.text += end_of_turn();
  }

  /// The system turn, where the family has one of its own.
  void open(ChatText& out, const std::string& given, bool has_system) const {
    switch (family_) {
      case ChatFamily::chatml:
        if (has_system || !default_system_.empty())
          marked(out, "system", has_system ? given : default_system_);
        break;
      case ChatFamily::llama3:
        if (has_system || !system_head_.empty()) {
          out.text += "<|start_header_id|>system<|end_header_id|>\n\n" + system_head_;
          add_content(out, trim(given));
          out.text += "<|eot_id|>";
        }
        break;
      case ChatFamily::phi3:
      case ChatFamily::zephyr:
        if (has_system) marked(out, "system", given);
        break;
      case ChatFamily::deepseek:
        add_content(out, given);
        break;
      case ChatFamily::mistral:
        if (has_system && system_block_) {
          out.text += "[SYSTEM_PROMPT]";
          add_content(out, given);
          out.text += "[/SYSTEM_PROMPT]";
        }
        break;
      case ChatFamily::gemma:
        break;  // stands in the first user turn
    }
  }

  void user(ChatText& out, std::string_view content, std::string_view system) const {
    switch (family_) {
      case ChatFamily::gemma:
        if (!system.empty()) {
          marked(out, "user", detail::text(system, "\n\n", trim(content)));
          return;
        }
        break;
      case ChatFamily::mistral:
        out.text += before_user_;
        if (!system.empty() && !system_block_) add_content(out, detail::text(system, "\n\n"));
        add_content(out, content);
        out.text += after_user_;
        return;
      case ChatFamily::deepseek:
        out.text += "<｜User｜>";
        add_content(out, content);
        return;
      default:
        break;
    }
    marked(out, "user", content);
  }

  void begin_reply(ChatText& out) const {
    switch (family_) {
      case ChatFamily::chatml:
        out.text += "<|im_start|>assistant\n";
        break;
      case ChatFamily::gemma:
        out.text += "<start_of_turn>model\n";
        break;
      case ChatFamily::llama3:
        out.text += "<|start_header_id|>assistant<|end_header_id|>\n\n";
        break;
      case ChatFamily::phi3:
      case ChatFamily::zephyr:
        out.text += "<|assistant|>\n";
        break;
      case ChatFamily::deepseek:
        out.text += "<｜Assistant｜>";
        break;
      case ChatFamily::mistral:
        break;
    }
  }

  std::string end_of_turn() const {
    switch (family_) {
      case ChatFamily::chatml:
        return "<|im_end|>\n";
      case ChatFamily::gemma:
        return "<end_of_turn>\n";
      case ChatFamily::llama3:
        return "<|eot_id|>";
      case ChatFamily::phi3:
        return "<|end|>\n";
      case ChatFamily::zephyr:
        return "</s>\n";
      case ChatFamily::mistral:
        return "</s>";
      case ChatFamily::deepseek:
        return "<｜end▁of▁sentence｜>";
    }
    return {};
  }
  std::string end_of_reply() const { return end_of_turn(); }

  ChatFamily family_;
  std::string default_system_;                                    // chatml
  std::string system_head_;                                       // llama3
  std::string before_user_ = "[INST] ", after_user_ = "[/INST]";  // mistral
  bool system_block_ = false;
};

/// A conversation with a model that keeps its cache: gives the ids that are new.
class ChatSession {
 public:
  /// `system`: empty for the template's own default.
  ChatSession(Tokenizer tokenizer, ChatFormat format, std::string system = {})
      : tokenizer_(std::move(tokenizer)), format_(std::move(format)), system_(std::move(system)) {}

  /// The ids to feed for a user's message, up to where the reply begins. The cache is expected to
  /// hold all ids given before and the replies without the tokens that ended them.
  std::vector<std::int32_t> user_turn(std::string_view message) {
    const bool first = turns_++ == 0;
    ChatText text;
    if (first) {
      std::vector<ChatMessage> messages;
      if (!system_.empty()) messages.push_back({"system", system_});
      messages.push_back({"user", std::string(message)});
      text = format_.render(messages);
    } else {
      text = format_.next_turn(message);
    }
    return tokenizer_.encode(text.text,
                             {.parse_special = true, .add_bos = first, .literal = text.literal});
  }

  /// Begins anew, with an empty cache.
  void reset() { turns_ = 0; }

  const ChatFormat& format() const { return format_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  Tokenizer tokenizer_;
  ChatFormat format_;
  std::string system_;
  std::size_t turns_ = 0;
};

}  // namespace rapt
