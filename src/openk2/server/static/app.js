// The chat page: a conversation, streamed answers, and tool calls run here with their results sent back.

import { ApiError, getJson, setApiKey, streamChat } from "./api.js";
import { runTool } from "./tools.js";

const MAX_TOOL_TURNS = 6; // a small model may call for ever
const LOADING_POLL_MS = 1000;
const CHIPS = [
  "What is 23 * 19?",
  "What time is it in Tokyo?",
  "What's the weather in Paris?",
  "Calculate 12 * (3 + 4), tell me the time in UTC and the weather in Oslo",
];
const ABOUT_NANO =
  "k2-nano is a small demonstration model of the Kimi K2 architecture, trained to call tools. " +
  "It knows nothing about the world: do not trust its text.";

const element = (id) => document.getElementById(id);
const log = element("log");
const input = element("input");

const state = {
  model: null,
  tools: [],
  messages: [],
  abort: null, // AbortController of the answer under way
};

// ---- elements -----------------------------------------------------------------------------------------------

function create(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function followIfAtEnd(change) {
  const page = document.documentElement;
  const isAtEnd = page.scrollHeight - page.scrollTop - page.clientHeight < 80;
  change();
  if (isAtEnd) page.scrollTop = page.scrollHeight;
}

function append(parent, node) {
  followIfAtEnd(() => parent.append(node));
  return node;
}

function showUser(text) {
  const turn = create("div", "turn user");
  turn.append(create("p", "text", text));
  append(log, turn);
}

function showError(error) {
  const card = create("div", "turn error", error.message);
  card.setAttribute("role", "alert");
  if (error.status === 401) card.append(keyForm());
  append(log, card);
}

function keyForm() {
  const form = create("form", "");
  const field = create("input", "");
  field.type = "password";
  field.placeholder = "API key";
  field.setAttribute("aria-label", "API key");
  form.append(field, create("button", "", "Use it"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setApiKey(field.value.trim());
    form.parentElement.remove();
    connect();
  });
  return form;
}

/** A card that fills while a call streams, and then shows its result. */
class CallCard {
  constructor(parent, name) {
    this.node = create("div", "call");
    const head = create("div", "call-head");
    this.stateLabel = create("span", "call-state", "calling ...");
    head.append(create("strong", "", name), this.stateLabel);
    this.argumentsText = create("code", "");
    this.result = create("code", "result");
    this.node.append(head, this.argumentsText, this.result);
    append(parent, this.node);
  }

  addArguments(text) {
    followIfAtEnd(() => (this.argumentsText.textContent += text));
  }

  finish(text, isError) {
    this.node.classList.add(isError ? "failed" : "done");
    this.stateLabel.textContent = isError ? "failed" : "done";
    followIfAtEnd(() => (this.result.textContent = text));
  }

  cutOff() {
    this.node.classList.add("failed");
    this.stateLabel.textContent = "cut off";
  }
}

// ---- one answer ---------------------------------------------------------------------------------------------

/** Stream one assistant turn into the page; return its message, its cards and why it ended. */
async function streamTurn(messages, signal) {
  const turn = append(log, create("div", "turn assistant waiting"));
  const answer = { thoughts: "", text: "", calls: [], cards: [], finishReason: null };
  let thoughts = null;
  let paragraph = null;
  const body = { model: state.model, messages, tools: state.tools };
  try {
    for await (const chunk of streamChat(body, signal)) {
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.reasoning_content) {
        thoughts ??= showThoughts(turn);
        answer.thoughts += choice.delta.reasoning_content;
        followIfAtEnd(() => (thoughts.textContent = answer.thoughts));
      }
      if (choice.delta.content) {
        paragraph ??= append(turn, create("p", "text"));
        answer.text += choice.delta.content;
        followIfAtEnd(() => (paragraph.textContent = answer.text));
      }
      for (const part of choice.delta.tool_calls ?? []) {
        if (part.id) {
          answer.calls.push({ id: part.id, type: "function", function: { name: part.function.name, arguments: "" } });
          answer.cards.push(new CallCard(turn, part.function.name));
        }
        answer.calls[part.index].function.arguments += part.function.arguments ?? "";
        answer.cards[part.index].addArguments(part.function.arguments ?? "");
      }
      answer.finishReason = choice.finish_reason ?? answer.finishReason;
    }
  } finally {
    turn.classList.remove("waiting");
    if (answer.finishReason !== "tool_calls") answer.cards.forEach((card) => card.cutOff());
    remember(messages, answer);
    if (answer.finishReason === "length") append(turn, create("p", "note", "The answer was cut: the window is full."));
    if (answer.finishReason === "stop" && !answer.text) append(turn, create("p", "note", "The model said nothing."));
  }
  return answer;
}

/** A fold for what the model thinks before it answers; the element that holds it. */
function showThoughts(turn) {
  const fold = create("details", "thoughts");
  const text = create("p", "text");
  fold.append(create("summary", "", "Thoughts"), text);
  append(turn, fold);
  return text;
}

/** Keep what the model will see again: calls only if they are complete, for each needs a result. */
function remember(messages, answer) {
  const message = { role: "assistant", content: answer.text || null };
  if (answer.thoughts) message.reasoning_content = answer.thoughts;
  if (answer.finishReason === "tool_calls") message.tool_calls = answer.calls;
  if (message.content !== null || message.tool_calls) messages.push(message);
}

function runCalls(messages, answer) {
  answer.calls.forEach((call, i) => {
    let content, isError = false;
    try {
      content = runTool(call.function.name, call.function.arguments);
    } catch (error) {
      content = `error: ${error.message}`;
      isError = true;
    }
    answer.cards[i].finish(content, isError);
    messages.push({ role: "tool", tool_call_id: call.id, content });
  });
}

async function send(text) {
  if (state.abort || !state.model || !text.trim()) return;
  element("welcome").hidden = true;
  showUser(text);
  const messages = state.messages; // "New chat" begins another list while this one is being answered
  messages.push({ role: "user", content: text });
  const abort = new AbortController();
  setBusy(abort);
  try {
    for (let turn = 0; ; turn++) {
      const answer = await streamTurn(messages, abort.signal);
      if (answer.finishReason !== "tool_calls") break;
      runCalls(messages, answer);
      if (turn + 1 === MAX_TOOL_TURNS) throw new ApiError(`Stopped after ${MAX_TOOL_TURNS} turns of tool calls.`, 0);
    }
  } catch (error) {
    if (state.abort !== abort) return;
    if (error.name === "AbortError") append(log, create("p", "turn note", "Stopped."));
    else showError(error);
  } finally {
    if (state.abort === abort) setBusy(null);
  }
}

// ---- the page -----------------------------------------------------------------------------------------------

function setBusy(abort) {
  state.abort = abort;
  element("send").hidden = abort !== null;
  element("stop").hidden = abort === null;
  log.setAttribute("aria-busy", String(abort !== null));
  if (abort === null) input.focus();
}

function stop() {
  state.abort?.abort();
}

function newChat() {
  stop();
  setBusy(null);
  state.messages = [];
  log.replaceChildren();
  element("welcome").hidden = false;
}

function submit() {
  if (state.abort || !state.model) return;
  const text = input.value;
  input.value = "";
  fitInput();
  send(text);
}

function fitInput() {
  input.rows = Math.min(10, input.value.split("\n").length);
}

async function connect() {
  const label = element("model");
  try {
    const [models, demo] = await Promise.all([getJson("/v1/models"), getJson("/ui/tools.json")]);
    const model = models.data[0];
    state.model = model.id;
    state.tools = demo.tools;
    label.textContent = model.max_model_len ? `${model.id}, window of ${model.max_model_len} tokens` : model.id;
    if (model.root === "k2-nano") element("about").textContent = ABOUT_NANO;
  } catch (error) {
    if (error.status === 503) {
      label.textContent = "the model is loading ...";
      setTimeout(connect, LOADING_POLL_MS);
      return;
    }
    label.textContent = "not connected";
    showError(error);
  }
}

function switchTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("openk2-theme", root.dataset.theme);
}

function start() {
  const theme = localStorage.getItem("openk2-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  for (const text of CHIPS) {
    const chip = create("button", "", text);
    chip.type = "button";
    chip.addEventListener("click", () => send(text));
    element("chips").append(chip);
  }
  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  input.addEventListener("input", fitInput);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") stop();
    if (event.altKey && event.key.toLowerCase() === "n") newChat();
  });
  element("stop").addEventListener("click", stop);
  element("new-chat").addEventListener("click", newChat);
  element("theme").addEventListener("click", switchTheme);
  connect();
}

start();
