// node vercel.mjs URL API MODE: one question through the Vercel AI SDK, with a tool that it runs itself; prints JSON.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';

const [url, api, mode] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey: 'any' };
const provider = api === 'anthropic' ? createAnthropic(options) : createOpenAICompatible({ name: 'openk2', ...options });
const request = {
  model: provider('scripted'),
  prompt: 'How is the weather?',
  maxRetries: 0,
  stopWhen: stepCountIs(4),
  tools: {
    get_weather: tool({
      description: 'The weather in a city.',
      inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
      execute: async ({ city }) => `cold in ${city}`,
    }),
  },
};
let answer;
if (mode === 'streamed') {
  answer = streamText(request);
  let text = '';
  for await (const part of answer.textStream) text += part;
  if (!(await answer.text) || !text.endsWith(await answer.text)) throw new Error('the stream is not the text');
} else {
  answer = await generateText(request);
}
const steps = await answer.steps;
console.log(JSON.stringify({
  text: await answer.text,
  calls: steps.flatMap((step) => step.toolCalls.map(({ toolName, input }) => [toolName, input])),
  results: steps.flatMap((step) => step.toolResults.map(({ output }) => output)),
  finish: await answer.finishReason,
}));
