// Who AWS says we are, by the SDK's default chain.
import { STSClient, GetCallerIdentityCommand } from "@aws-sdk/client-sts";

const who = await new STSClient({}).send(new GetCallerIdentityCommand({}));
console.log("I am", who.Arn);
